"""What a hostile server has learnt in a game, and whether it may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from boltz_protocol import codec_sealed
from boltz_protocol.packing import WIRE_MAX, add_packed24, decode_sum
from boltz_protocol.secagg.bitmap import indexes
from boltz_protocol.secagg.masks import apply_masks
from tests.simulation.protocol.eye import Adversary, learnt
from tests.simulation.protocol.lies import ANOTHER_CONTEXT, Kind

if TYPE_CHECKING:
    from tests.simulation.protocol.game import Game


def judge(game: Game) -> None:
    """Nothing but sums that were agreed on, of enough clients, none of whom was deceived."""
    adversary = _adversary(game)
    adversary.check_never_both(game.honest)
    masked = [
        part.masked
        for index, part in game.parts.items()
        if index in game.honest and part.masked is not None
    ]
    known = adversary.known_keys()
    game.learnt = learnt(masked, known)
    game.log.append(f"learnt: {[sorted(found) for found in game.learnt]}")
    agreed = [frozenset(indexes(each, game.size)) for each in game.seen]
    for found in game.learnt:
        sets = [each for each in agreed if each.intersection(game.honest) == found]
        assert sets, f"the sum of {sorted(found)}, which nobody signed, is learnt"
        count = max(map(len, sets))
        assert count >= game.setting.min_clients, f"the sum of {sorted(found)} is below the floor"
        for kind in ANOTHER_CONTEXT & game.lies.keys():
            if kind is Kind.OTHER_GRAPH and not game.setting.sparse:
                continue  # there are no nonces to leave out
            assert game.victim(kind) not in found, f"a sum with a client that was shown {kind}"
        _check_sum(game, found, known)


def _adversary(game: Game) -> Adversary:
    said = {
        index: codec_sealed.parse_key_advertisement(each.payload)
        for index, each in game.advertisements.items()
    }
    dealt = {i: part.dealt for i, part in game.parts.items() if part.dealt is not None}
    adversary = Adversary(
        names={index: each.client_id for index, each in said.items()},
        publics={index: each.mask_public_key for index, each in said.items()},
        contexts=frozenset(state.context for state in dealt.values()),
        thresholds={index: state.graph.threshold for index, state in dealt.items()},
    )
    for holder, released in game.eye.released.items():
        adversary.take(holder, released)
    for index in game.corrupt:
        adversary.corrupt(index, game.parts[index].dealt, game.parts[index].held)
    # Whichever keys a corrupt client has, the masks that it shares are known.
    for state in dealt.values():
        for index in game.corrupt & state.pair_streams.keys():
            adversary.keys.add(state.pair_streams[index].key)
    return adversary


def _check_sum(game: Game, found: frozenset[int], known: set[bytes]) -> None:
    """What is said to be learnt can indeed be computed."""
    total = np.zeros(game.setting.coordinates, np.uint32)
    plain = np.zeros(game.setting.coordinates, np.int32)
    for index in found:
        masked = game.parts[index].masked
        assert masked is not None
        add_packed24(total, masked.vector)
        apply_masks(total, 0, [each.removed() for each in masked.streams if each.key in known])
        plain += masked.values
    assert list(decode_sum(total, WIRE_MAX)) == list(plain), "the adversary is no adversary"
