"""Sums of whole grouped attempts: each group's is exact by itself, or is not opened at all."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boltz_protocol import messages as m
from boltz_protocol.errors import MalformedMessage, RoundRefused, ShareRefused
from boltz_protocol.sealing import round_share_variance
from boltz_protocol.secagg import server
from tests.support.secagg import NotEnough, Phase, World
from tests.unit.protocol.secagg.refusals import refused

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
LEAVING = st.sampled_from([phase for phase in Phase if phase is not Phase.RELEASED])


def sums_agree(world: World) -> bool:
    opened, plain = world.unmasked_sums(), world.plain_sums()
    return opened.keys() == plain.keys() and all(
        np.array_equal(opened[group], plain[group]) for group in plain
    )


@settings(SLOW, max_examples=25)
@given(
    st.data(),
    st.sampled_from([(10, 2), (11, 2), (17, 3), (26, 4)]),
    st.sampled_from(list(m.Adversary)),
    st.integers(0, 2**32),
)
def test_any_mixture_of_dropouts_gives_exact_sums_or_none(
    data: st.DataObject, shape: tuple[int, int], adversary: m.Adversary, seed: int
) -> None:
    size, groups = shape
    world = World.grouped(size, groups, adversary=adversary, seed=seed)
    who = data.draw(st.lists(st.integers(0, size - 1), max_size=size // 3, unique=True))
    try:
        total = world.run({index: data.draw(LEAVING) for index in who})
    except NotEnough:
        return
    assert sums_agree(world)
    assert np.array_equal(total, world.plain_sum())
    for of_group in world.attempt.by_group(world.survivors).values():
        assert len(of_group) >= 3


def test_dropouts_in_every_phase_of_every_group() -> None:
    world = World.grouped(60, 4, corrupt_fraction=0.05, dropout_fraction=0.1)
    left = {10 * index: Phase(index) for index in range(6)}
    total = world.run(left)
    assert [len(group) for group in world.attempt.groups] == [15, 15, 14, 14]
    # Three of sixty may collude, all three in one group: (15 + 3) // 2 + 1, and (14 + 3) // 2 + 1.
    assert [graph.threshold for graph in world.attempt.agreement.graphs] == [10, 10, 9, 9]
    assert len(world.survivors) == 60 - 4
    assert sums_agree(world)
    assert np.array_equal(total, world.plain_sum())


def test_groups_of_fifty() -> None:
    world = World.grouped(100, 2, coordinates=3)
    assert np.array_equal(world.run(), world.plain_sum())
    assert {len(group) for group in world.attempt.groups} == {50}


def test_nothing_of_one_group_opens_another() -> None:
    world = World.grouped(12, 2, coordinates=2000).until_seen()
    world.release(range(12))
    streams = world.streams_to_remove()
    swapped = world.unmasked_sums({0: streams[1], 1: streams[0]})
    for group, plain in world.plain_sums().items():
        assert np.count_nonzero(swapped[group] == plain) < 20
        others = set(world.attempt.groups[1 - group])
        for index in world.attempt.groups[group]:
            assert not others & {share.dealer for share in world.released[index].shares}
            assert not others & set(world.dealt[index][0].holders)


# --- a group that becomes too small ---------------------------------------------------------------


def small_group(gone: int = 3) -> tuple[World, tuple[int, ...], tuple[int, ...]]:
    """Two groups of six; of the first so many do not upload, and the server leaves it out."""
    world = World.grouped(12, 2, min_group_survivors=4)
    world.until_dealt()
    weak, strong = world.attempt.groups
    world.share(range(12))
    world.upload([*weak[gone:], *strong])
    world.leave_out_small_groups()
    return world, weak, strong


def test_a_group_with_too_few_survivors_is_left_out() -> None:
    world, weak, strong = small_group()
    assert world.survivors == set(strong)
    world.attempt.check_survivors(world.survivors)
    world.show_survivors(strong)
    for index in weak:
        client = world.clients[index]
        refused(client, partial(client.take_survivors, world.survivors_payload()), "0 survivors in")
    world.release(strong[:3])
    assert not world.is_enough()
    world.release(strong[3:])
    assert world.is_enough()
    assert world.streams_to_remove().keys() == {1}
    assert sums_agree(world)


def test_one_more_upload_keeps_the_group() -> None:
    world, weak, strong = small_group(gone=2)
    assert world.survivors == {*weak[2:], *strong}
    world.show_survivors(range(12))
    world.release(strong)
    assert not world.is_enough()
    world.release(weak[:4])
    assert world.is_enough()
    assert sums_agree(world)


def test_nobody_releases_in_a_group_without_survivors() -> None:
    world, weak, strong = small_group()
    world.show_survivors(strong)
    world.release(strong)
    shares = world.released[strong[0]]
    with pytest.raises(ShareRefused, match="without survivors"):
        server.check_released(
            world.attempt,
            weak[0],
            shares,
            world.signed_deals,
            world.survivors,
            world.sharers,
        )


def test_the_server_finds_out_which_survivors_clients_would_refuse() -> None:
    world = World.grouped(12, 2).until_dealt()
    first, second = world.attempt.groups
    world.attempt.check_survivors({*first, *second[:4]})
    world.attempt.check_survivors(set(second))
    with pytest.raises(RoundRefused, match="3 survivors; 4 shares"):
        world.attempt.check_survivors({*first, *second[:3]})
    with pytest.raises(RoundRefused, match="0 survivors"):
        world.attempt.check_survivors(set())
    with pytest.raises(MalformedMessage, match="dealt no shares"):
        world.attempt.check_survivors({*first, 12})


# --- noise ---------------------------------------------------------------------------------------


def test_the_sum_of_each_group_has_at_least_the_noise_of_the_plan() -> None:
    coordinates = 20_000
    world = World.grouped(
        20,
        2,
        coordinates=coordinates,
        min_group_survivors=8,
        corrupt_fraction=0.05,
        noise_multiplier=1.0,
    )
    for values in world.values:
        values[:] = 0
    share = round_share_variance(world.configuration, world.encoding)
    target = float(world.encoding.sigma_squared)
    assert float(share) == pytest.approx(target / 7)
    world.run({3: Phase.SIGNED, 5: Phase.DEALT}, noise=share)
    for group, total in world.unmasked_sums().items():
        survivors = len(world.attempt.by_group(world.survivors)[group])
        variance = float(np.mean(np.square(total, dtype=np.float64)))
        # 20,000 samples: within 1% of the truth (1 sd).
        assert variance == pytest.approx(survivors / 7 * target, rel=0.06)
        assert variance > target
