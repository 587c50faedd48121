"""Messages cannot hold a value out of range."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol.errors import LimitExceeded, MalformedMessage, MeshError, NotFinite
from tests.support import samples

DIGEST = b"x" * 31
FAR = 1 << 60

REFUSED: list[tuple[Callable[[], Any], dict[str, Any], type[MeshError]]] = [
    (samples.check_in, {"mesh_id": "Not A Name"}, MalformedMessage),
    (samples.check_in, {"client_id": "short"}, MalformedMessage),
    (samples.check_in, {"session_id": "CC" * 16}, MalformedMessage),
    (samples.check_in, {"model_id": ""}, MalformedMessage),
    (samples.check_in, {"sample_bucket": 32}, MalformedMessage),
    (samples.check_in, {"quality_bucket": 4}, MalformedMessage),
    (samples.check_in, {"region": "Eu West"}, MalformedMessage),
    (samples.check_in, {"region": "a" * 64}, MalformedMessage),
    (samples.check_in, {"at_ms": 0}, MalformedMessage),
    (samples.check_in, {"at_ms": FAR}, MalformedMessage),
    (samples.encryption_key, {"algorithm": "rsa-pkcs1"}, MalformedMessage),
    (samples.encryption_key, {"public_key_spki": b""}, MalformedMessage),
    (samples.encryption_key, {"not_after_ms": samples.NOW_MS}, MalformedMessage),
    (
        samples.encryption_key,
        {"not_after_ms": samples.NOW_MS + limits.SERVER_KEY_LIFETIME_MS + 1},
        MalformedMessage,
    ),
    (samples.manifest, {"version": 0}, MalformedMessage),
    (samples.manifest, {"parent_version": 2}, MalformedMessage),
    (samples.manifest, {"parent_version": 0}, MalformedMessage),
    (samples.manifest, {"parent_sha256": b""}, MalformedMessage),
    (samples.manifest, {"sha256": b""}, MalformedMessage),
    (samples.manifest, {"size_bytes": limits.MAX_MODEL_FILE_BYTES + 1}, MalformedMessage),
    (samples.manifest, {"tensors": ()}, MalformedMessage),
    (samples.manifest, {"tensors": (m.TensorSpec("w", ()),) * 2}, MalformedMessage),
    (
        samples.manifest,
        {"tensors": (m.TensorSpec("a", (1 << 30,)), m.TensorSpec("b", (1,)))},
        LimitExceeded,
    ),
    (samples.manifest, {"optimizer_state_sha256": DIGEST}, MalformedMessage),
    (samples.manifest, {"round_id": "no"}, MalformedMessage),
    (samples.configuration, {"attempt": 0}, MalformedMessage),
    (samples.configuration, {"attempt": limits.MAX_ATTEMPTS + 1}, MalformedMessage),
    (samples.configuration, {"base_version": 0}, MalformedMessage),
    (samples.configuration, {"model_sha256": DIGEST}, MalformedMessage),
    (samples.configuration, {"parameters": 0}, MalformedMessage),
    (samples.configuration, {"lanes": (m.Lane("a", 1.0),) * 2}, MalformedMessage),
    (
        samples.configuration,
        {"lanes": tuple(m.Lane(f"lane{i}", 1.0) for i in range(limits.MAX_LANES + 1))},
        LimitExceeded,
    ),
    (samples.configuration, {"clip_norm": math.nan}, NotFinite),
    (samples.configuration, {"clip_norm": 0.0}, MalformedMessage),
    (samples.configuration, {"clip_indicator": "other"}, MalformedMessage),
    (samples.configuration, {"clip_indicator": "loss", "lanes": ()}, MalformedMessage),
    (samples.configuration, {"clip_indicator": "loss", "clip_norm": 0.4}, MalformedMessage),
    (samples.configuration, {"scale": math.inf}, NotFinite),
    (samples.configuration, {"scale": 1000.0}, MalformedMessage),
    (samples.configuration, {"scale": -1024.0}, MalformedMessage),
    (samples.configuration, {"bound_l2": 0}, MalformedMessage),
    (samples.configuration, {"noise_multiplier": 0.0}, MalformedMessage),
    (samples.configuration, {"noise_multiplier": math.nan}, NotFinite),
    (samples.configuration, {"noise_multiplier": -1.0}, MalformedMessage),
    (samples.configuration, {"privacy": "maybe"}, MalformedMessage),
    (samples.configuration, {"privacy": m.PRIVACY_NONE}, MalformedMessage),
    (samples.configuration, {"delta": 1.0}, MalformedMessage),
    (samples.configuration, {"epsilon_budget": 0.0}, MalformedMessage),
    (samples.configuration, {"roster_root": b""}, MalformedMessage),
    (samples.configuration, {"roster_size": 0}, MalformedMessage),
    (samples.configuration, {"roster_size": limits.MAX_ROSTER + 1}, MalformedMessage),
    (samples.configuration, {"total_weight": 17}, MalformedMessage),
    (samples.configuration, {"total_weight": 49}, MalformedMessage),
    (samples.configuration, {"max_weight": 256}, MalformedMessage),
    (samples.configuration, {"min_survivors": 0}, MalformedMessage),
    (samples.configuration, {"min_survivors": 4}, MalformedMessage),
    (samples.configuration, {"deadline_ms": samples.NOW_MS}, MalformedMessage),
    (
        samples.configuration,
        {"deadline_ms": samples.NOW_MS + limits.MAX_PHASE_MS + 1},
        MalformedMessage,
    ),
    (samples.configuration, {"chunk_coordinates": 1 << 17}, MalformedMessage),
    (samples.configuration, {"hyperparameters": {"": 1}}, MalformedMessage),
    (samples.configuration, {"hyperparameters": {"a": math.nan}}, NotFinite),
    (samples.configuration, {"hyperparameters": {"a": "x" * 1025}}, LimitExceeded),
    (samples.configuration, {"hyperparameters": {str(i): i for i in range(65)}}, LimitExceeded),
    (samples.configuration, {"protocol_version": 0}, MalformedMessage),
    (samples.roster_entry, {"index": limits.MAX_ROSTER}, MalformedMessage),
    (samples.roster_entry, {"weight": 0}, MalformedMessage),
    (samples.roster_entry, {"group_id": -1}, MalformedMessage),
    (samples.roster_entry, {"trust_256": -1}, MalformedMessage),
    (samples.roster_entry, {"trust_256": 257}, MalformedMessage),
    (lambda: m.WeightTerms(0, 1), {"sample_bucket_cap": 32}, MalformedMessage),
    (lambda: m.WeightTerms(0, 1), {"top_trust_256": 0}, MalformedMessage),
    (lambda: m.WeightTerms(0, 1), {"top_trust_256": 257}, MalformedMessage),
    (samples.roster_entry, {"certificate_chain_der": (b"x" * 40_000,)}, LimitExceeded),
    (samples.offer, {"roster_entry": b""}, LimitExceeded),
    (samples.offer, {"proof": (m.RosterSibling(b"h" * 32, 1),) * 15}, LimitExceeded),
    (samples.outcome, {"phase": m.Phase.COLLECTING}, MalformedMessage),
    (samples.outcome, {"reason": "x" * 201}, LimitExceeded),
    (samples.outcome, {"new_version": -1}, MalformedMessage),
    (samples.update_manifest, {"wrapped_content_key": b"w" * 383}, MalformedMessage),
    (samples.update_manifest, {"key_commitment": b""}, MalformedMessage),
    (samples.update_manifest, {"size_bytes": 0}, MalformedMessage),
    (samples.update_manifest, {"weight": 256}, MalformedMessage),
    (samples.receipt, {"sha256": DIGEST}, MalformedMessage),
    (samples.receipt, {"log_position": -1}, MalformedMessage),
]


@pytest.mark.parametrize(
    ("make", "change", "error"),
    REFUSED,
    ids=[f"{c[0].__name__}-{next(iter(c[1]))}" for c in REFUSED],
)
def test_a_field_out_of_range_is_refused(
    make: Callable[[], Any], change: dict[str, Any], error: type[MeshError]
) -> None:
    good = make()
    with pytest.raises(error):
        replace(good, **change)


@pytest.mark.parametrize(
    "make",
    [
        lambda: m.ProtocolRange(2, 1),
        lambda: m.ProtocolRange(0, 1),
        lambda: m.TensorSpec("", ()),
        lambda: m.TensorSpec("a\nb", ()),
        lambda: m.TensorSpec("__metadata__", ()),
        lambda: m.TensorSpec("w", (0,)),
        lambda: m.Lane("loss", -1.0),
        lambda: m.Lane("Loss", 1.0),
        lambda: m.TraceContext("not a traceparent"),
        lambda: m.RoundDecline(samples.ROUND, 1, "lower case"),
        lambda: m.Welcome(0, 1),
        lambda: m.RosterSibling(b"h" * 32, 0),
    ],
)
def test_small_parts_are_checked(make: Callable[[], object]) -> None:
    with pytest.raises(MalformedMessage):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: m.TensorSpec("w", (1,) * 9),
        lambda: m.TensorSpec("w", (1 << 20, 1 << 20)),
        lambda: m.TraceContext("", "x" * 513),
    ],
)
def test_small_parts_have_caps(make: Callable[[], object]) -> None:
    with pytest.raises(LimitExceeded):
        make()


def test_counts_of_coordinates() -> None:
    assert samples.configuration().coordinates == 8
    assert samples.manifest().parameters == 7
    assert replace(samples.configuration(), privacy="none", noise_multiplier=0.0).privacy == "none"


def test_trainers_see_nothing_of_the_clip_indicator() -> None:
    plain = samples.configuration()
    assert (plain.metric_lanes, plain.indicator_scale) == (plain.lanes, 0.0)
    assert plain.delta_clip_norm == plain.clip_norm
    lanes = (*plain.lanes, m.Lane("within", 0.2))
    adaptive = replace(plain, lanes=lanes, clip_indicator="within")
    assert (adaptive.metric_lanes, adaptive.indicator_scale) == (plain.lanes, 0.2)
    assert adaptive.delta_clip_norm == pytest.approx(math.sqrt(1 - 0.01))
    assert adaptive.coordinates == plain.coordinates + 1
