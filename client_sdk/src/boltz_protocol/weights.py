"""Weights of a round, and the Merkle sum tree that commits to them.

A weight is an integer from 1 to 255, computed from buckets and trust in integer arithmetic, so
that every language gets the same. The tree has the shape of RFC 6962 section 2.1 and carries a sum
in every node, bound into the hash: a client checks its own leaf and the total at once, and a mesh
that shows different totals to different clients has to break SHA-256.

    leaf = SHA-256(0x00 || u32 index || u8 length || client id || entry digest || u64 weight)
    node = SHA-256(0x01 || left hash || u64 left sum || right hash || u64 right sum)

All numbers are big-endian; client ids are ASCII; the entry digest is the SHA-256 of the client's
roster entry.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from boltz_protocol.errors import MalformedMessage, WeightRefused
from boltz_protocol.ids import ClientId
from boltz_protocol.limits import (
    MAX_QUALITY_BUCKET,
    MAX_ROSTER,
    MAX_SAMPLE_BUCKET,
    MAX_WEIGHT,
)
from boltz_protocol.messages import RosterEntry, RoundConfiguration

HASH_BYTES: Final = 32
#: Trust is counted in steps of 1/256; 256 is full trust.
TRUST_ONE: Final = 256
#: Shares of the total are compared in parts per million.
PPM: Final = 1_000_000

# Sums are written in 64 bits; a whole roster at full weight stays far below.
assert MAX_ROSTER * MAX_WEIGHT < 1 << 63


def sample_bucket(sample_count: int) -> int:
    """`floor(log2(max(1, sample_count)))`, at most `limits.MAX_SAMPLE_BUCKET`.

    Only the bucket is ever sent. Raises: MalformedMessage on a negative count.
    """
    if sample_count < 0:
        raise MalformedMessage(f"sample count {sample_count} is negative", field="sample_count")
    return min(max(1, sample_count).bit_length() - 1, MAX_SAMPLE_BUCKET)


def weight(
    *, sample_bucket: int, quality_bucket: int, trust_256: int, sample_bucket_cap: int
) -> int:
    """`255 * 2^(min(bucket, cap) - cap) * (quality + 1) / 4 * trust`, from 1 to 255.

    Rounded half to even; at least 1, so that nobody is selected for nothing.

    Args:
        sample_bucket: 0 to 31.
        quality_bucket: 0 (worst) to 3 (best).
        trust_256: trust in 1/256, 0 to 256.
        sample_bucket_cap: buckets above this count like it, 0 to 31.

    Raises: MalformedMessage naming the value that is out of range.
    """
    for name, value, most in (
        ("sample_bucket", sample_bucket, MAX_SAMPLE_BUCKET),
        ("quality_bucket", quality_bucket, MAX_QUALITY_BUCKET),
        ("trust_256", trust_256, TRUST_ONE),
        ("sample_bucket_cap", sample_bucket_cap, MAX_SAMPLE_BUCKET),
    ):
        if not 0 <= value <= most:
            raise MalformedMessage(f"{name} is {value}, outside 0 to {most}", field=name)
    missing = sample_bucket_cap - min(sample_bucket, sample_bucket_cap)
    numerator = MAX_WEIGHT * (quality_bucket + 1) * trust_256
    denominator = (MAX_QUALITY_BUCKET + 1) * TRUST_ONE << missing
    whole, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and whole % 2):
        whole += 1
    return max(1, whole)


def relative_trust(trust_256: int, top_trust_256: int) -> int:
    """A trust as a share of the largest in its roster, in 1/256: what goes into `weight`.

    Only ratios of trust matter within a round, and a roster of newcomers alone would lose two of
    the eight bits of its weights. Rounded half up; at least 1.

    Args:
        trust_256: 1 to `top_trust_256`.
        top_trust_256: 1 to 256.

    Raises: MalformedMessage on values out of these ranges.
    """
    if not 1 <= trust_256 <= top_trust_256 <= TRUST_ONE:
        raise MalformedMessage(
            f"trust {trust_256} in a roster whose largest is {top_trust_256}", field="trust_256"
        )
    return max(1, (TRUST_ONE * trust_256 + top_trust_256 // 2) // top_trust_256)


def check_weight(entry: RosterEntry, configuration: RoundConfiguration) -> None:
    """Compute an entry's weight again from its buckets and its trust, where the mesh tells them.

    A cap on shares lowers the largest weights of a roster to one level, `max_weight`, and leaves
    the others as they are: so the smaller of the two is the right one.

    Raises:
        MalformedMessage: trust is told without the terms, or the terms without trust, or it is
            above the roster's largest.
        WeightRefused: it is another weight.
    """
    terms = configuration.weight_terms
    if (terms is None) != (entry.trust_256 == 0):
        raise MalformedMessage("weight terms and trust are told together", field="trust_256")
    if terms is None:
        return
    uncapped = weight(
        sample_bucket=entry.sample_bucket,
        quality_bucket=entry.quality_bucket,
        trust_256=relative_trust(entry.trust_256, terms.top_trust_256),
        sample_bucket_cap=terms.sample_bucket_cap,
    )
    expected = min(uncapped, configuration.max_weight)
    if entry.weight != expected:
        raise WeightRefused(
            f"weight {entry.weight} where sample bucket {entry.sample_bucket}, quality bucket "
            f"{entry.quality_bucket} and trust {entry.trust_256} of {terms.top_trust_256} make "
            f"{expected}",
            weight=entry.weight,
            expected=expected,
        )


def check_share(own_weight: int, total: int, *, max_share_ppm: int) -> None:
    """Refuse a round in which one weight takes too much of the total.

    Raises: WeightRefused when `own_weight / total` is above `max_share_ppm` millionths.
    """
    if own_weight * PPM > total * max_share_ppm:
        raise WeightRefused(
            f"weight {own_weight} of {total} is a larger share than {max_share_ppm / PPM:.2%}",
            weight=own_weight,
            total=total,
        )


@dataclass(frozen=True, slots=True)
class WeightLeaf:
    """One client's entry.

    Attributes:
        index: position in the roster, from 0.
        client_id: 32 lower-case hex digits.
        entry_digest: SHA-256 of the client's roster entry.
        weight: 1 to 255.

    Raises: MalformedMessage naming the field that is out of range.
    """

    index: int
    client_id: ClientId
    entry_digest: bytes
    weight: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < MAX_ROSTER:
            raise MalformedMessage(f"roster index {self.index}", field="index")
        if not (self.client_id.isascii() and 1 <= len(self.client_id) <= 255):
            raise MalformedMessage("a client id is 1 to 255 ASCII characters", field="client_id")
        if len(self.entry_digest) != HASH_BYTES:
            raise MalformedMessage(
                f"an entry digest has {HASH_BYTES} bytes, not {len(self.entry_digest)}",
                field="entry_digest",
            )
        if not 1 <= self.weight <= MAX_WEIGHT:
            raise MalformedMessage(f"weight {self.weight} is not 1 to {MAX_WEIGHT}", field="weight")

    def node(self) -> SumNode:
        """The leaf's hash and sum."""
        name = self.client_id.encode("ascii")
        head = struct.pack(">BIB", 0, self.index, len(name))
        tail = struct.pack(">Q", self.weight)
        digest = hashlib.sha256(head + name + self.entry_digest + tail).digest()
        return SumNode(digest, self.weight)


@dataclass(frozen=True, slots=True)
class SumNode:
    """A node of the tree: hash (32 bytes) and sum of the weights below it."""

    hash: bytes
    total: int


def _join(left: SumNode, right: SumNode) -> SumNode:
    body = b"\x01" + left.hash + struct.pack(">Q", left.total)
    body += right.hash + struct.pack(">Q", right.total)
    return SumNode(hashlib.sha256(body).digest(), left.total + right.total)


def _split(size: int) -> int:
    """The largest power of two below `size` (RFC 6962 section 2.1)."""
    return 1 << ((size - 1).bit_length() - 1)


def _subtree(nodes: Sequence[SumNode]) -> SumNode:
    if len(nodes) == 1:
        return nodes[0]
    middle = _split(len(nodes))
    return _join(_subtree(nodes[:middle]), _subtree(nodes[middle:]))


def _leaf_nodes(leaves: Sequence[WeightLeaf]) -> list[SumNode]:
    if not 1 <= len(leaves) <= MAX_ROSTER:
        raise MalformedMessage(f"a roster of {len(leaves)}; 1 to {MAX_ROSTER} clients take part")
    for position, leaf in enumerate(leaves):
        if leaf.index != position:
            raise MalformedMessage(f"leaf {leaf.index} stands at position {position}")
    return [leaf.node() for leaf in leaves]


def root(leaves: Sequence[WeightLeaf]) -> SumNode:
    """The tree's root: hash, and the total of all weights.

    Raises: MalformedMessage on an empty or oversize roster, or leaves out of order.
    """
    return _subtree(_leaf_nodes(leaves))


def root_of_nodes(nodes: Sequence[SumNode]) -> SumNode:
    """The root over leaves of which only hash and weight are known, in roster order.

    Raises: MalformedMessage on an empty or oversize roster.
    """
    if not 1 <= len(nodes) <= MAX_ROSTER:
        raise MalformedMessage(f"a roster of {len(nodes)}; 1 to {MAX_ROSTER} clients take part")
    return _subtree(nodes)


def prove(leaves: Sequence[WeightLeaf], index: int) -> tuple[SumNode, ...]:
    """The siblings on the way from leaf `index` to the root, lowest first.

    Raises: MalformedMessage as `root` does, or for an index outside the roster.
    """
    nodes = _leaf_nodes(leaves)
    if not 0 <= index < len(nodes):
        raise MalformedMessage(f"leaf {index} of {len(nodes)}", field="index")
    siblings: list[SumNode] = []
    while len(nodes) > 1:
        middle = _split(len(nodes))
        if index < middle:
            siblings.append(_subtree(nodes[middle:]))
            nodes = nodes[:middle]
        else:
            siblings.append(_subtree(nodes[:middle]))
            nodes = nodes[middle:]
            index -= middle
    return tuple(reversed(siblings))


def prove_all(leaves: Sequence[WeightLeaf]) -> tuple[tuple[SumNode, ...], ...]:
    """`prove` for every leaf, hashing each node once: what a server needs when a round opens.

    Raises: MalformedMessage as `root` does.
    """
    nodes = _leaf_nodes(leaves)
    proofs: list[list[SumNode]] = [[] for _ in nodes]

    def climb(start: int, stop: int) -> SumNode:
        if stop - start == 1:
            return nodes[start]
        middle = start + _split(stop - start)
        left, right = climb(start, middle), climb(middle, stop)
        for index in range(start, middle):
            proofs[index].append(right)
        for index in range(middle, stop):
            proofs[index].append(left)
        return _join(left, right)

    climb(0, len(nodes))
    return tuple(tuple(proof) for proof in proofs)


def _path(index: int, size: int) -> list[tuple[bool, int]]:
    """From the leaf upwards: whether the sibling is on the left, and how many leaves it has."""
    path: list[tuple[bool, int]] = []
    while size > 1:
        middle = _split(size)
        if index < middle:
            path.append((False, size - middle))
            size = middle
        else:
            path.append((True, middle))
            index -= middle
            size -= middle
    return path[::-1]


def verify(leaf: WeightLeaf, size: int, proof: Sequence[SumNode], committed: SumNode) -> None:
    """Check that `leaf` is in the committed tree of `size` leaves, and that the total is honest.

    Raises:
        MalformedMessage: a proof of the wrong length, a hash of the wrong size, an index or size
            out of range.
        WeightRefused: a sibling's sum that its number of leaves cannot have, or another root or
            total than the committed one.
    """
    if not 1 <= size <= MAX_ROSTER or leaf.index >= size:
        raise MalformedMessage(f"leaf {leaf.index} of {size}", field="size")
    path = _path(leaf.index, size)
    if len(path) != len(proof):
        raise MalformedMessage(f"a proof of {len(proof)} nodes where {len(path)} are needed")
    node = leaf.node()
    for (on_the_left, leaves), sibling in zip(path, proof, strict=True):
        if len(sibling.hash) != HASH_BYTES:
            raise MalformedMessage(f"a hash of {len(sibling.hash)} bytes in a weight proof")
        # Every weight is 1 to 255, so a sum outside says that leaves are missing or invented.
        if not leaves <= sibling.total <= leaves * MAX_WEIGHT:
            raise WeightRefused(f"{leaves} clients cannot weigh {sibling.total} together")
        node = _join(sibling, node) if on_the_left else _join(node, sibling)
    if node != committed:
        raise WeightRefused(
            f"leaf {leaf.index} with weight {leaf.weight} is not in the committed weights",
            weight=leaf.weight,
        )
