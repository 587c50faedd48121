"""Make the vectors for numbers: `proto/vectors/numerics_*.json`.

A second implementation: it imports nothing of the mesh, works on one number at a time with Python's
integers, `decimal` and `hashlib`, and so agrees with the product by the text of the contract alone.
Every key is fixed: a second run writes the same bytes. Floats stand as decimal text and as the
big-endian hex of their IEEE 754 form; large integers as decimal text.

Run: python tools/make_vectors_numerics.py [FOLDER]
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import sys
from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

VECTORS: Final = Path(__file__).resolve().parent.parent / "proto" / "vectors"
DIGITS: Final = 110
BITS: Final = 128

Json = dict[str, object]


def _key(label: str) -> bytes:
    return hashlib.sha256(b"boltz-mesh numerics vector " + label.encode()).digest()


class Stream:
    """AES-256-CTR keystream from single block encryptions, counter from zero, big-endian."""

    def __init__(self, key: bytes) -> None:
        self._aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        self._counter = 0
        self._rest = b""

    def number(self, size: int) -> int:
        """The next `size` bytes as a little-endian number."""
        while len(self._rest) < size:
            self._rest += self._aes.update(self._counter.to_bytes(16, "big"))
            self._counter += 1
        taken, self._rest = self._rest[:size], self._rest[size:]
        return int.from_bytes(taken, "little")


def _double(value: float) -> Json:
    return {"decimal": repr(value), "ieee754": struct.pack(">d", value).hex()}


# --- packing -----------------------------------------------------------------------------------


def _packed(values: list[int]) -> bytes:
    return b"".join((value % (1 << 24)).to_bytes(3, "little") for value in values)


def _packing() -> Json:
    lists = [
        [0],
        [1, -1],
        [(1 << 23) - 1, -(1 << 23), 0, 255, 256, -256, 65535, 65536, -65537],
        [(7919 * k * k) % 2001 - 1000 for k in range(40)],
    ]
    one, two = lists[3], [3 * value - 5 for value in reversed(lists[3])]
    return {
        "vectors": [
            {
                "values": values,
                "packed": _packed(values).hex(),
                "norm_squared": str(sum(value * value for value in values)),
            }
            for values in lists
        ],
        "sum": {
            "packed": [_packed(one).hex(), _packed(two).hex(), _packed(two).hex()],
            "values": [a + 2 * b for a, b in zip(one, two, strict=True)],
        },
    }


# --- encoding ----------------------------------------------------------------------------------


def _fraction_bits(units: Fraction) -> int:
    return min(16, 30 - math.ceil(units).bit_length())


def _bound(units: Fraction, coordinates: int) -> int:
    with localcontext(prec=DIGITS):
        d = Decimal(coordinates)
        grid = Decimal(math.isqrt(coordinates) + 1) / (2 << _fraction_bits(units))
        c = Decimal(units.numerator) / units.denominator + grid
        by_chance = (c * c + d / 4 + c + d.sqrt() / 2).sqrt()
        return int(min(by_chance, c + d.sqrt()).to_integral_value(rounding=ROUND_CEILING))


def _plan(clip: float, noise: float, cohort: int, coordinates: int) -> tuple[int, int]:
    for exponent in range(60, -60, -1):
        units = Fraction(clip) * Fraction(2) ** exponent
        if units >= 1 << 23:
            continue
        bound = _bound(units, coordinates)
        with localcontext(prec=DIGITS):
            spread = 8 * Decimal(noise) * bound * Decimal(cohort).sqrt()
            if cohort * bound + spread < 1 << 23:
                return exponent, bound
    raise AssertionError("a vector needs a plan that works")


def _encoding_json(clip: float, noise: float, cohort: int, coordinates: int) -> Json:
    exponent, bound = _plan(clip, noise, cohort, coordinates)
    sigma_squared = (Fraction(noise) * bound) ** 2
    return {
        "clip_norm_l2": _double(clip),
        "noise_multiplier": _double(noise),
        "cohort_max": cohort,
        "coordinates": coordinates,
        "scale_log2": exponent,
        "bound_l2": bound,
        "fraction_bits": _fraction_bits(Fraction(clip) * Fraction(2) ** exponent),
        "sigma_squared": f"{sigma_squared.numerator}/{sigma_squared.denominator}",
    }


def _encodings() -> list[Json]:
    return [
        _encoding_json(*plan)
        for plan in (
            (1.0, 1.0, 20, 1 << 20),
            (1.0, 0.0, 1, 1 << 20),
            (0.3, 0.8, 60, 25_000_000),
            (12.5, 2.25, 5, 33),
            (2.0**-30, 1.5, 1000, 100_001),
            (1e9, 0.0, 4, 1),
        )
    ]


def _rounding() -> list[Json]:
    cases: list[Json] = []
    for name, clip, factor, weights in (
        ("plain", 1.0, 1.0, (255, 255)),
        ("clipped and weighted", 0.25, 0.123456789, (80, 128)),
    ):
        raw = [math.sin(1.7 * k) * 0.2 for k in range(24)]
        values = [struct.unpack(">f", struct.pack(">f", value))[0] for value in raw]
        lanes = [0.125, -0.031]
        encoding = _encoding_json(clip, 0.5, 10, len(values) + len(lanes))
        bits, exponent = encoding["fraction_bits"], encoding["scale_log2"]
        bound = encoding["bound_l2"]
        assert isinstance(bits, int)
        assert isinstance(exponent, int)
        assert isinstance(bound, int)
        multiplier = factor * (weights[0] / weights[1]) * 2.0 ** (exponent + bits)
        stream = Stream(_key(name))
        while True:
            encoded = [
                (round(value * multiplier) + (stream.number(2) >> (16 - bits))) >> bits
                for value in [*values, *lanes]
            ]
            if sum(value * value for value in encoded) <= bound * bound:
                break
        cases.append(
            {
                "name": name,
                "encoding": encoding,
                "key": _key(name).hex(),
                "values_float32": [struct.pack(">f", value).hex() for value in values],
                "scaled_lanes": [_double(lane) for lane in lanes],
                "clip_factor": _double(factor),
                "weight": weights[0],
                "max_weight": weights[1],
                "encoded": encoded,
                "packed": _packed(encoded).hex(),
            }
        )
    return cases


# --- the clip indicator ------------------------------------------------------------------------


def _indicator(name: str, clip: float, scale: float, size: float, weights: tuple[int, int]) -> Json:
    """One client's lane: C' from C and the lane's scale, the bit, the integers it may become."""
    raw = [math.cos(0.9 * k) * size for k in range(12)]
    values = [struct.unpack(">f", struct.pack(">f", value))[0] for value in raw]
    lanes, cohort = [size / 4], 5
    exponent, _ = _plan(clip, 0.0, cohort, len(values) + len(lanes) + 1)
    with localcontext(prec=DIGITS):
        inner = (Decimal(clip) ** 2 - (Decimal(scale) / 2) ** 2).sqrt()
        norm = sum((Decimal(value) ** 2 for value in [*values, *lanes]), Decimal(0)).sqrt()
        assert abs(norm / inner - 1) > Decimal("1e-6"), "a vector is no borderline case"
        factor = min(Decimal(1), inner / norm)
    bit = Fraction(1 if norm <= inner else -1, 2)
    exact = Fraction(scale) * bit * Fraction(*weights) * Fraction(2) ** exponent
    return {
        "name": name,
        "clip_norm": _double(clip),
        "indicator_scale": _double(scale),
        "values_float32": [struct.pack(">f", value).hex() for value in values],
        "scaled_lanes": [_double(lane) for lane in lanes],
        "inner_clip_norm": _double(float(inner)),
        "norm": _double(float(norm)),
        "factor": _double(float(factor)),
        "bit": float(bit),
        "weight": weights[0],
        "max_weight": weights[1],
        "cohort_max": cohort,
        "scale_log2": exponent,
        "lane_integers": sorted({math.floor(exact), math.ceil(exact)}),
    }


def _indicators() -> list[Json]:
    return [
        _indicator("within", 1.0, 0.2, 0.3, (255, 255)),
        _indicator("within C and beyond C'", 1.0, 1.0, 0.38, (255, 255)),
        _indicator("shortened", 0.08, 0.016, 5.0, (80, 128)),
        _indicator("large", 1e6, 1.5e5, 1e5, (1, 3)),
    ]


# --- noise -------------------------------------------------------------------------------------


def _exp(x: Fraction) -> Decimal:
    return (Decimal(-x.numerator) / x.denominator).exp()


class Table:
    """Cumulative thresholds of 128 bits over consecutive integers, by direct exponentials."""

    def __init__(self, variance: Fraction, *, signed: bool) -> None:
        self.reach = math.isqrt(math.ceil(variance * Fraction(66, 5) ** 2)) + 1
        self.first = -self.reach if signed else 0
        half = [_exp(k * k / (2 * variance)) for k in range(self.reach + 1)]
        masses = [half[abs(k)] for k in range(self.first, self.reach + 1)]
        total, cumulative = sum(masses), Decimal(0)
        self.thresholds: list[int] = []
        for mass in masses[:-1]:
            cumulative += mass
            self.thresholds.append(int(cumulative / total * (1 << BITS)))
        self.open_cells = {threshold >> (BITS - 16) for threshold in self.thresholds}

    def sample(self, count: int, stream: Stream) -> list[int]:
        """First all 16-bit cells, then 48 more bits for the undecided, then 64 on a tie."""
        cells = [stream.number(2) for _ in range(count)]
        numbers = [
            (cell << 48 | stream.number(8) >> 16) if cell in self.open_cells else cell << 48
            for cell in cells
        ]
        upper = {threshold >> 64 for threshold in self.thresholds}
        samples: list[int] = []
        for cell, number in zip(cells, numbers, strict=True):
            tie = cell in self.open_cells and number in upper
            wide = number << 64 | (stream.number(8) if tie else 0)
            samples.append(self.first + sum(threshold <= wide for threshold in self.thresholds))
        return samples


def _two_level(table: Table, variance: Fraction, shift: int) -> Callable[[int, Stream], list[int]]:
    size = 1 << shift
    worst = Fraction((2 * table.reach + 1) * size * size) / (2 * variance)
    surely = int(_exp(worst) * 0xFFFF) << 16

    def draw(count: int, stream: Stream) -> list[int]:
        coarse = table.sample(count, stream)
        words = [stream.number(4) for _ in range(count)]
        kept: list[int | None] = []
        for y, word in zip(coarse, words, strict=True):
            offset, magnitude = word % size, y * size + word % size
            keep = True
            if word >= surely:
                uniform = (word >> 16) << 48 | stream.number(8) >> 16
                exponent = Fraction(offset * (offset + 2 * size * y)) / (2 * variance)
                margin = Decimal(uniform) / (1 << 64) - _exp(exponent)
                assert abs(margin) > Decimal(2) ** -44, "a vector needs no exact decision"
                keep = margin < 0
            negative = bool(word & 0x8000)
            keep = keep and not (negative and magnitude == 0)
            kept.append((-magnitude if negative else magnitude) if keep else None)
        again = [index for index, sample in enumerate(kept) if sample is None]
        fresh = iter(draw(len(again), stream) if again else [])
        return [next(fresh) if sample is None else sample for sample in kept]

    return draw


def _noise_case(name: str, variance: Fraction, count: int) -> Json:
    stream = Stream(_key(name))
    with localcontext(prec=DIGITS):
        shift = 0
        if variance > 2048**2:
            while variance >= (256 << (shift + 1)) ** 2:
                shift += 1
        table = Table(variance / 4**shift, signed=shift == 0)
        draw = _two_level(table, variance, shift) if shift else table.sample
        samples = draw(count, stream)
    middle = len(table.thresholds) // 2
    return {
        "sigma_squared": f"{variance.numerator}/{variance.denominator}",
        "key": _key(name).hex(),
        "table_first_value": table.first,
        "table_shift": shift,
        "table_thresholds": len(table.thresholds),
        "table_middle": middle,
        "table_middle_thresholds": [f"{t:032x}" for t in table.thresholds[middle : middle + 4]],
        "table_sha256": hashlib.sha256(
            b"".join(threshold.to_bytes(16, "big") for threshold in table.thresholds)
        ).hexdigest(),
        "samples": samples[:32],
        "count": count,
        "samples_sha256": hashlib.sha256(
            b"".join(struct.pack(">i", sample) for sample in samples)
        ).hexdigest(),
    }


def _noise() -> list[Json]:
    return [
        _noise_case("small", Fraction(1, 4), 2000),
        _noise_case("direct", Fraction(131) ** 2, 2000),
        _noise_case("scaled", (Fraction(1.5) * 140_000) ** 2, 3000),
    ]


# --- weights -----------------------------------------------------------------------------------


def _weight(bucket: int, quality: int, trust: int, cap: int) -> int:
    exact = Fraction(255 * (quality + 1) * trust, 4 * 256 << (cap - min(bucket, cap)))
    return max(1, round(exact))


def _tree(nodes: list[tuple[bytes, int]]) -> tuple[bytes, int]:
    if len(nodes) == 1:
        return nodes[0]
    split = 1
    while split * 2 < len(nodes):
        split *= 2
    (left, left_sum), (right, right_sum) = _tree(nodes[:split]), _tree(nodes[split:])
    body = b"\x01" + left + left_sum.to_bytes(8, "big") + right + right_sum.to_bytes(8, "big")
    return hashlib.sha256(body).digest(), left_sum + right_sum


def _proof(nodes: list[tuple[bytes, int]], index: int) -> list[tuple[bytes, int]]:
    if len(nodes) == 1:
        return []
    split = 1
    while split * 2 < len(nodes):
        split *= 2
    if index < split:
        return [*_proof(nodes[:split], index), _tree(nodes[split:])]
    return [*_proof(nodes[split:], index - split), _tree(nodes[:split])]


def _weights() -> Json:
    trees: list[Json] = []
    for size in (1, 2, 3, 5, 8, 11):
        leaves: list[Json] = []
        nodes: list[tuple[bytes, int]] = []
        for index in range(size):
            client = hashlib.sha256(f"client {size} {index}".encode()).hexdigest()[:32]
            entry = hashlib.sha256(f"entry {size} {index}".encode()).digest()
            weight = (37 * index + 11) % 255 + 1
            body = b"\0" + index.to_bytes(4, "big") + bytes([len(client)]) + client.encode()
            digest = hashlib.sha256(body + entry + weight.to_bytes(8, "big")).digest()
            nodes.append((digest, weight))
            leaves.append(
                {
                    "index": index,
                    "client_id": client,
                    "entry_digest": entry.hex(),
                    "weight": weight,
                    "hash": digest.hex(),
                }
            )
        for index, leaf in enumerate(leaves):
            leaf["proof"] = [
                {"hash": digest.hex(), "total": total} for digest, total in _proof(nodes, index)
            ]
        digest, total = _tree(nodes)
        trees.append({"leaves": leaves, "root": digest.hex(), "total": total})
    return {
        "weights": [
            {
                "sample_bucket": bucket,
                "quality_bucket": quality,
                "trust_256": trust,
                "sample_bucket_cap": cap,
                "weight": _weight(bucket, quality, trust, cap),
            }
            for bucket, cap in ((0, 0), (0, 12), (9, 12), (12, 12), (31, 12), (31, 31), (5, 6))
            for quality in range(4)
            for trust in (0, 1, 100, 128, 255, 256)
        ],
        "trees": trees,
    }


def main(folder: Path) -> None:
    """Write all vector files into the folder."""
    files: dict[str, object] = {
        "numerics_packing.json": _packing(),
        "numerics_encoding.json": _encodings(),
        "numerics_rounding.json": _rounding(),
        "numerics_indicator.json": _indicators(),
        "numerics_noise.json": _noise(),
        "numerics_weights.json": _weights(),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else VECTORS)
