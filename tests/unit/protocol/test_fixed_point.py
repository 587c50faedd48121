from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_protocol.encoding import Encoding, plan_encoding
from boltz_protocol.errors import NormExceeded
from boltz_protocol.fixed_point import encode_vector
from boltz_protocol.keystream import Keystream
from boltz_protocol.packing import norm_squared24, pack24
from boltz_protocol.squares import BLOCK
from tests.support.keys import load_vectors

KEY = bytes(range(32))


def _encoding(coordinates: int, cohort: int = 20, clip_norm: float = 1.0) -> Encoding:
    return plan_encoding(
        clip_norm_l2=clip_norm,
        noise_multiplier=0.0,
        cohort_max=cohort,
        coordinates=coordinates,
    )


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40),
    st.lists(st.floats(-1, 1), max_size=3),
    st.integers(1, 3000),
    st.binary(min_size=32, max_size=32),
)
def test_rounds_to_a_neighbour_and_keeps_the_bound(
    values: list[float], lanes: list[float], cohort: int, key: bytes
) -> None:
    encoding = _encoding(len(values) + len(lanes), cohort)
    array = np.array(values, dtype=np.float32)
    norm = math.sqrt(math.fsum(value * value for value in [*values, *lanes]))
    factor = 1 / max(1.0, norm * (1 + 1e-9))
    out = encode_vector(array, lanes, factor, encoding, Keystream(key))
    assert out.dtype == np.int32
    assert out.shape == (encoding.coordinates,)
    assert norm_squared24(out) <= encoding.bound_l2**2
    exact = np.array([*values, *lanes]) * factor * 2.0**encoding.scale_log2
    assert np.all(np.abs(out - exact) < 1 + 2.0**-encoding.fraction_bits)
    assert np.array_equal(array, np.array(values, dtype=np.float32))


def test_the_mean_of_roundings_is_the_value() -> None:
    encoding = _encoding(4 * BLOCK)
    fraction = 0.375
    value = (100 + fraction) * 2.0**-encoding.scale_log2
    values = np.full(4 * BLOCK, value, dtype=np.float32)
    out = encode_vector(values, (), 1.0, encoding, Keystream(KEY))
    assert set(np.unique(out).tolist()) == {100, 101}
    spread = math.sqrt(fraction * (1 - fraction) / values.size)
    assert abs(out.mean() - 100 - fraction) < 5 * spread + 2.0**-17


@pytest.mark.parametrize("cohort", [1, 2, 20, 3000])
@pytest.mark.parametrize("size", [1, 1000, 3 * BLOCK + 1])
def test_a_vector_of_equal_parts_at_the_norm_passes(cohort: int, size: int) -> None:
    # All grid errors have one sign here: the worst case for the bound.
    encoding = _encoding(size, cohort)
    values = np.full(size, 1 / math.sqrt(size), dtype=np.float32)
    norm = math.sqrt(size) * float(values[0])
    for attempt in range(5):
        key = bytes([attempt]) * 32
        out = encode_vector(values, (), 1 / max(norm, 1.0), encoding, Keystream(key))
        assert norm_squared24(out) <= encoding.bound_l2**2


def test_redraws_until_the_bound_is_kept() -> None:
    # A hundred coordinates that toss a coin each, at a norm of 2048.4 with a bound of 2049: the
    # vector is too long in about an eighth of the draws.
    size = 100
    encoding = _encoding(size, 3000, clip_norm=2048.45 / 2048)
    assert encoding.scale_log2 == 11
    assert encoding.bound_l2 == 2049
    values = np.array([205.5] * 34 + [204.5] * 66, dtype=np.float32) / np.float32(2048)
    draws = [0] * 4
    for attempt in range(40):
        key = bytes([attempt]) * 32
        stream = Keystream(key)
        out = encode_vector(values, (), 1.0, encoding, stream)
        assert norm_squared24(out) <= encoding.bound_l2**2
        # Where the stream stands now tells how many draws were made.
        whole = Keystream(key).uint16(size * len(draws) + 4)
        following = stream.uint16(4).tolist()
        made = [n for n in range(1, 4) if whole[n * size : n * size + 4].tolist() == following]
        draws[made[0]] += 1
    assert draws[1] > draws[2] > 0


@pytest.mark.parametrize("factor", [1.01, 1e6, 1e30])
def test_a_vector_beyond_the_norm_is_refused(factor: float) -> None:
    encoding = _encoding(10)
    values = np.full(10, 1 / math.sqrt(10), dtype=np.float32)
    with pytest.raises(NormExceeded):
        encode_vector(values, (), factor, encoding, Keystream(KEY))


def test_lanes_are_counted() -> None:
    with pytest.raises(AssertionError):
        encode_vector(np.ones(3, dtype=np.float32), (), 0.1, _encoding(4), Keystream(KEY))


def test_vectors() -> None:
    for case in load_vectors("numerics_rounding"):
        agreed = case["encoding"]
        encoding = Encoding(
            clip_norm_l2=float(agreed["clip_norm_l2"]["decimal"]),
            scale_log2=agreed["scale_log2"],
            bound_l2=agreed["bound_l2"],
            coordinates=agreed["coordinates"],
            cohort_max=agreed["cohort_max"],
            noise_multiplier=float(agreed["noise_multiplier"]["decimal"]),
        )
        values = [struct.unpack(">f", bytes.fromhex(text))[0] for text in case["values_float32"]]
        lanes = [float(lane["decimal"]) for lane in case["scaled_lanes"]]
        factor = float(case["clip_factor"]["decimal"]) * (case["weight"] / case["max_weight"])
        stream = Keystream(bytes.fromhex(case["key"]))
        out = encode_vector(np.array(values, dtype=np.float32), lanes, factor, encoding, stream)
        assert out.tolist() == case["encoded"]
        assert bytes(pack24(out)).hex() == case["packed"]
