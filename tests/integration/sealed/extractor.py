"""The extractor: from a view to every combination of the clients' vectors that is free of masks.

A vector on the wire is the client's noised vector plus masks, each of them added or subtracted. A
mask whose key is known (`closure`) is taken off. Every other mask is a formal variable over
Z_2^24: the keystream of a key that nobody can compute is uniform there as far as anybody can tell,
and keystreams of different keys have nothing to do with each other. So what the server can learn
beyond noise is exactly the kernel of the matrix of those masks, over the ring and not over a field:
all of the combinations that it could form, with even weights too.

Which masks are one and the same is taken twice. By the protocol a mask belongs to its attempt; by
the keys alone it would come again wherever a client's mask key does. The second reading takes in
what an implementation might get wrong, and claims too much where it did not; so each combination is
also computed from the uploads, and counts as found only where the result is not spread over the
whole ring, as a masked vector is.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from boltz_protocol.limits import CHUNK_PARAMETERS, WIRE_BITS
from boltz_protocol.secagg.masks import MaskStream, apply_masks, pair_sign
from tests.integration.sealed.algebra import Module, Row, centred, kernel
from tests.integration.sealed.closure import Knowledge
from tests.integration.sealed.view import Facts, Key, Upload, View

#: Half the spread of a uniform vector. One of d coordinates comes below it with probability under
#: exp(-d / 2) (Chernoff's bound for squares of uniform numbers).
_SPREAD = 2.0**WIRE_BITS / np.sqrt(12) / 2
#: A mask, by whatever makes it the same mask elsewhere.
_Name = tuple[object, ...]


class Reading(enum.Enum):
    """What makes two masks the same one."""

    ATTEMPT = "the attempt and the clients"
    KEYS = "the advertised mask keys"


class Label(NamedTuple):
    """Names one upload: `number` counts those of one client in one attempt."""

    round_id: str
    attempt: int
    position: int
    number: int


@dataclass(frozen=True, slots=True)
class Combination:
    """Some uploads, weighted and added up, known masks off.

    Attributes:
        weights: modulo 2^24, those that are not zero.
        values: the result, centred about zero.
    """

    weights: Mapping[Label, int]
    values: Row = field(repr=False)


@dataclass(frozen=True, slots=True)
class Extraction:
    """All that is there to learn.

    Attributes:
        labels: of the uploads; column by column of `module`.
        module: weights of all combinations in which every unknown mask cancels.
        uploads: with their known masks off.
    """

    labels: tuple[Label, ...]
    module: Module
    uploads: tuple[Row, ...] = field(repr=False)

    @property
    def found(self) -> list[Combination]:
        """The module's generators, as far as the uploads bear them out."""
        combinations = [self.combine(row) for row in self.module.generators]
        return [each for each in combinations if is_no_mask(each.values)]

    def combine(self, weights: Row | Sequence[int]) -> Combination:
        """Any combination at all."""
        chosen = [
            (label, int(weight) % (1 << WIRE_BITS), upload)
            for label, weight, upload in zip(self.labels, weights, self.uploads, strict=True)
            if int(weight) % (1 << WIRE_BITS)
        ]
        size = min(upload.size for _, _, upload in chosen)
        total = np.zeros(size, np.int64)
        for _, weight, upload in chosen:
            total = (total + weight * upload[:size]) % (1 << WIRE_BITS)
        return Combination({label: weight for label, weight, _ in chosen}, centred(total))

    def row(self, *labels: Label) -> list[int]:
        """The weights of the plain sum of some uploads."""
        assert set(labels) <= set(self.labels), "uploads of this view"
        return [int(label in labels) for label in self.labels]

    def is_spanned_by(self, rows: Iterable[Sequence[int]]) -> bool:
        """Whether the combinations of these, and no others, are free of masks."""
        return self.module.same_as(Module.spanned(rows, len(self.labels), WIRE_BITS))


def is_no_mask(values: Row) -> bool:
    """Whether a centred vector is less spread out than a mask would leave it."""
    return bool(np.sqrt(np.mean(np.square(values.astype(np.float64)))) < _SPREAD)


def extract(
    view: View, secrets: Iterable[bytes] = (), reading: Reading = Reading.ATTEMPT
) -> Extraction:
    """Everything that the holder of a view can learn.

    Args:
        secrets: what colluding clients drew from their generators.
    """
    known = Knowledge.closed(view, secrets)
    columns: dict[_Name, int] = {}
    labels: list[Label] = []
    signs: list[dict[int, int]] = []
    uploads: list[Row] = []
    for key, facts in view.attempts.items():
        numbers: dict[int, int] = {}
        for upload in facts.uploads:
            numbers[upload.index] = number = numbers.get(upload.index, -1) + 1
            labels.append(Label(*key, upload.index, number))
            unknown, removable = _masks(known, key, facts, upload, reading)
            signs.append(
                {columns.setdefault(name, len(columns)): sign for name, sign in unknown.items()}
            )
            uploads.append(_without(upload, removable))
    matrix = np.zeros((len(labels), len(columns)), np.int64)
    for row, entries in zip(matrix, signs, strict=True):
        for column, sign in entries.items():
            row[column] = sign
    return Extraction(tuple(labels), kernel(matrix, WIRE_BITS), tuple(uploads))


def _masks(
    known: Knowledge, key: Key, facts: Facts, upload: Upload, reading: Reading
) -> tuple[dict[_Name, int], list[MaskStream]]:
    """The unknown masks of an upload with their signs, and how to take off the known ones."""
    index, keys = upload.index, facts.attempt.advertisements
    by_keys = reading is Reading.KEYS
    unknown: dict[_Name, int] = {}
    removable: list[MaskStream] = []
    stream = known.self_stream(key, index)
    if stream is not None:
        removable.append(stream.removed())
    else:
        unknown["self", keys[index].mask_public_key if by_keys else (key, index)] = 1
    for other in facts.masked_with(index):
        stream = known.pair_stream(key, index, other)
        if stream is not None:
            removable.append(stream.removed())
            continue
        pair = sorted((index, other))
        ends = tuple(keys[end].mask_public_key for end in pair)
        unknown["pair", ends if by_keys else (key, *pair)] = pair_sign(index, other)
    return unknown, removable


def _without(upload: Upload, masks: Sequence[MaskStream]) -> Row:
    values = upload.vector.copy()
    for chunk, start in enumerate(range(0, values.size, CHUNK_PARAMETERS)):
        apply_masks(values[start : start + CHUNK_PARAMETERS], chunk, masks)
    return values.astype(np.int64) % (1 << WIRE_BITS)
