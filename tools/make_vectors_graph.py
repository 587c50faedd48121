"""Make the vectors for graphs and groups: `proto/vectors/secagg_graph.json`.

A second implementation: it imports nothing of the mesh and uses hashlib, exact fractions and the
plain AES block mode, so that it agrees with the product by the text of the contract alone. Every
random choice is fixed: a second run writes the same bytes.

Run: python tools/make_vectors_graph.py [FOLDER]
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from fractions import Fraction
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

VECTORS: Final = Path(__file__).resolve().parent.parent / "proto" / "vectors"

Json = dict[str, object]


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _fixed(label: str) -> bytes:
    """32 bytes that stand for random ones."""
    return _sha256(b"boltz-mesh secagg vector " + label.encode())


def _prefixed(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def _tail(others: int, marked: int, drawn: int, least: int) -> Fraction:
    """P(at least `least` marked ones among `drawn`), term by term."""
    ways = sum(
        math.comb(marked, x) * math.comb(others - marked, drawn - x)
        for x in range(least, drawn + 1)
    )
    return Fraction(ways, math.comb(others, drawn))


def _smallest(clients: int, corrupt: int, dropped: int, twice: bool) -> tuple[int, int]:
    """Every even number of neighbours and every threshold, until one pair is safe."""
    security, correctness = Fraction(1, clients << 41), Fraction(1, clients << 20)
    bad = corrupt + dropped
    for k in range(2, clients - 1, 2):
        pairs_of_runs = Fraction(clients * (clients - k - 1), 2)
        if pairs_of_runs * Fraction(math.perm(bad, k), math.perm(clients, k)) > security:
            continue
        colluding = next(
            q for q in range(k + 1) if _tail(clients - 1, corrupt, k, q + 1) <= security
        )
        for t in range(2, k + 1):
            if not (2 * t > k + colluding if twice else t > colluding):
                continue
            # Fewer than t survive when k - t + 1 or more are missing.
            if _tail(clients - 1, dropped, k, k - t + 1) <= correctness:
                return k, t
            break
    raise AssertionError("a vector needs parameters that exist")


def _parameters(clients: int, corrupt_text: str, dropout_text: str, adversary: str) -> Json:
    corrupt = math.floor(clients * Fraction(corrupt_text))
    dropped = math.floor(clients * Fraction(dropout_text))
    twice = adversary == "semi-malicious"
    if clients > 50:
        neighbours, threshold = _smallest(clients, corrupt, dropped, twice)
    else:
        neighbours = clients - 1
        least = range(2, clients + 1)
        threshold = next(t for t in least if (2 * t > clients + corrupt if twice else t > corrupt))
        assert clients - dropped >= threshold, "a vector needs parameters that exist"
    return {
        "clients": clients,
        "corrupt_fraction": float(corrupt_text),
        "dropout_fraction": float(dropout_text),
        "adversary": adversary,
        "colluders": corrupt,
        "tolerated_dropouts": dropped,
        "neighbours": neighbours,
        "threshold": threshold,
    }


def _ring(members: list[int], seed: bytes) -> list[int]:
    """Fisher and Yates with words of the keystream, one AES block after the other."""
    cipher = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    ring, unread, block = list(members), b"", 0
    for last in range(len(ring) - 1, 0, -1):
        size = last + 1
        while True:
            if not unread:
                unread, block = cipher.update(block.to_bytes(16, "big")), block + 1
            word, unread = int.from_bytes(unread[:4], "little"), unread[4:]
            if word < (1 << 32) // size * size:
                break
        ring[last], ring[word % size] = ring[word % size], ring[last]
    return ring


def _bits(positions: list[int], size: int) -> bytes:
    return sum(1 << position for position in positions).to_bytes(-(-size // 8), "little")


def _seeded(label: str, roster: int, members: list[int]) -> tuple[Json, bytes]:
    """The seed that these graph members draw from, and what leads to it."""
    nonces = [_fixed(f"{label} nonce {index}") for index in members]
    digests = [_fixed(f"{label} {what}") for what in ("configuration", "model", "key roster")]
    bitmap = _bits(members, roster)
    context = _sha256(
        b"boltz-mesh mask context v1\0" + _prefixed(*digests, bitmap, _sha256(b"".join(nonces)))
    )
    seed = _sha256(b"boltz-mesh graph seed v1\0" + _prefixed(context, *nonces))
    leading: Json = {
        "roster_size": roster,
        "graph_members": members,
        "graph_members_bitmap": bitmap.hex(),
        "configuration_sha256": digests[0].hex(),
        "model_sha256": digests[1].hex(),
        "key_roster_sha256": digests[2].hex(),
        "nonces": [nonce.hex() for nonce in nonces],
        "mask_context": context.hex(),
        "graph_seed": seed.hex(),
    }
    return leading, seed


def _drawn(roster: int, every: int, neighbours: int, threshold: int) -> Json:
    """A graph over all positions of the roster but each `every`-th one, and what leads to it."""
    members = [index for index in range(roster) if every == 0 or index % every]
    seeded, seed = _seeded(f"graph {roster}", roster, members)
    ring, reach = _ring(members, seed), neighbours // 2
    near: dict[int, list[int]] = {index: [] for index in members}
    for place, index in enumerate(ring):
        for step in range(1, reach + 1):
            other = ring[(place + step) % len(ring)]
            near[index].append(other)
            near[other].append(index)
    return {
        **seeded,
        "neighbours": neighbours,
        "threshold": threshold,
        "ring": ring,
        "neighbours_of": [sorted(near[index]) for index in members],
    }


def _in_a_group(roster: int, corrupt: int, groups: int) -> int:
    """The corrupt members that no group exceeds, over every number of members, one by one."""
    allowed, found = Fraction(1, groups << 40), 0
    for members in range(5 * groups, roster + 1):
        size, marked = -(-members // groups), min(corrupt, members)
        while _tail(members, marked, size, found + 1) > allowed:
            found += 1
    return found


def _group_colluders(roster: int, groups: int, corrupt_text: str) -> Json:
    corrupt = math.floor(roster * Fraction(corrupt_text))
    return {
        "roster_size": roster,
        "groups": groups,
        "corrupt_fraction": float(corrupt_text),
        "colluders": _in_a_group(roster, corrupt, groups),
    }


def _grouped(roster: int, every: int, groups: int, corrupt_text: str, adversary: str) -> Json:
    """Groups of all positions of the roster but each `every`-th one, and their thresholds."""
    members = [index for index in range(roster) if every == 0 or index % every]
    seeded, seed = _seeded(f"groups {roster}", roster, members)
    order = _ring(members, seed)
    of_member = {index: place % groups for place, index in enumerate(order)}
    drawn = [[index for index in members if of_member[index] == g] for g in range(groups)]
    corrupt = math.floor(roster * Fraction(corrupt_text))
    colluding = _in_a_group(roster, corrupt, groups)
    twice = adversary == "semi-malicious"
    return {
        **seeded,
        "corrupt_fraction": float(corrupt_text),
        "adversary": adversary,
        "colluders": colluding,
        "groups": drawn,
        "thresholds": [
            next(
                t
                for t in range(2, len(group) + 1)
                if (2 * t > len(group) + colluding if twice else t > colluding)
            )
            for group in drawn
        ],
    }


def _complete_context() -> Json:
    """Where the graph is complete there are no nonces, and their digest is that of nothing."""
    digests = [_fixed(f"complete {what}") for what in ("configuration", "model", "key roster")]
    bitmap = _bits([0, 2, 3], 9)
    encoded = b"boltz-mesh mask context v1\0" + _prefixed(*digests, bitmap, _sha256(b""))
    return {
        "configuration_sha256": digests[0].hex(),
        "model_sha256": digests[1].hex(),
        "key_roster_sha256": digests[2].hex(),
        "graph_members_bitmap": bitmap.hex(),
        "mask_context": _sha256(encoded).hex(),
    }


def _graph() -> Json:
    fractions = (("0.0", "0.0"), ("0.05", "0.05"), ("0.1", "0.1"), ("0.05", "0.33"), ("0.3", "0.2"))
    return {
        "parameters": [
            _parameters(clients, *pair, adversary)
            for clients, pair in (
                *((n, pair) for n in (3, 4, 5, 30, 50, 51, 100) for pair in fractions),
                (300, ("0.05", "0.1")),
                (1000, ("0.1", "0.1")),
                (10_000, ("0.0", "0.02")),
            )
            for adversary in ("semi-honest", "semi-malicious")
        ],
        "bitmaps": [
            {"size": size, "positions": positions, "bitmap": _bits(positions, size).hex()}
            for size, positions in (
                (1, [0]),
                (8, [0, 7]),
                (9, [8]),
                (13, [0, 3, 11, 12]),
                (100, list(range(1, 100, 3))),
            )
        ],
        "complete": _complete_context(),
        "graphs": [_drawn(60, 0, 6, 4), _drawn(110, 10, 16, 11)],
        "group_colluders": [
            _group_colluders(*case)
            for case in (
                (10, 2, "0.0"),
                (20, 4, "0.05"),
                (60, 4, "0.05"),
                (100, 10, "0.1"),
                (200, 4, "0.05"),
                (300, 12, "0.1"),
                (600, 12, "0.1"),
                (500, 100, "0.2"),
            )
        ],
        "groups": [
            _grouped(22, 0, 4, "0.05", "semi-malicious"),
            _grouped(64, 9, 5, "0.05", "semi-honest"),
            _grouped(100, 10, 3, "0.1", "semi-malicious"),
        ],
    }


def main(folder: Path) -> None:
    """Write the vector file into the folder."""
    (folder / "secagg_graph.json").write_text(json.dumps(_graph(), indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else VECTORS)
