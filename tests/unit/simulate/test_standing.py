"""Trust and weights of a simulated run are what the product's evidence comes to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from boltz_mesh.aggregation.rows import ClientRows, Unprotected
from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.simulate.mesh import Aggregated
from boltz_mesh.app.simulate.standing import Standing
from boltz_mesh.trust.conduct import PUBLISHED, Conduct, conduct_inputs, judge_conduct
from boltz_mesh.trust.quarantine import ALONE_BAD, FIRST_ROUNDS
from boltz_mesh.trust.reputation import NEWCOMER, apply
from boltz_protocol import weights

N = 12
BAD = frozenset({10, 11})


def standing(renewed_every: int = 0, stated: Mapping[int, int] | None = None) -> Standing:
    counts = [57] * N
    for client, count in (stated or {}).items():
        counts[client] = count
    return Standing(stated=counts, sample_bucket_cap=5, renewed_every=renewed_every, attackers=BAD)


def seen(members: tuple[int, ...], sign: float, seed: int) -> Aggregated:
    """Rows around a common direction; attackers' point against it and are long."""
    source = np.random.Generator(np.random.PCG64(seed))
    rows: FloatArray = 1.0 + 0.3 * source.normal(size=(len(members), 30))
    for place, client in enumerate(members):
        if client in BAD:
            rows[place] *= 5 * sign
    honest = [place for place, client in enumerate(members) if client not in BAD]
    made = ClientRows(rows, Unprotected.of("open", "none"))
    return Aggregated(rows[honest].mean(axis=0), made, tuple((client,) for client in members))


def hidden(members: tuple[int, ...]) -> Aggregated:
    return Aggregated(np.zeros(3), None, (members,))


def test_all_begin_as_newcomers() -> None:
    start = standing()
    assert start.begin() == tuple(range(N))
    committed = start.weights(start.begin())
    wanted = weights.weight(
        sample_bucket=5, quality_bucket=3, trust_256=NEWCOMER.trust_256, sample_bucket_cap=5
    )
    assert set(committed.values()) == {wanted}
    assert start.share(BAD, committed) == 2 / N


def test_where_nothing_may_be_looked_at_only_conduct_counts() -> None:
    run = standing()
    state = NEWCOMER
    conduct = judge_conduct(conduct_inputs(PUBLISHED, Conduct.COUNTED))
    for number in range(5):
        members = run.begin()
        committed = run.weights(members)
        run.end(hidden(members), committed)
        state = apply(state, 0 if number == 0 else 1, conduct)
    (weight,) = set(run.weights(run.begin()).values())
    assert weight == weights.weight(
        sample_bucket=5, quality_bucket=3, trust_256=state.trust_256, sample_bucket_cap=5
    )
    assert not run.ever_out


def test_who_pulls_against_the_others_goes_and_comes_back_with_little() -> None:
    run = standing()
    shares = []
    for number in range(ALONE_BAD):
        members = run.begin()
        assert len(members) == N
        committed = run.weights(members)
        shares.append(run.share(BAD, committed))
        run.end(seen(members, -1, number), committed)
    assert shares == sorted(shares, reverse=True)
    assert run.ever_out == BAD
    for number in range(FIRST_ROUNDS):
        members = run.begin()
        assert not BAD & set(members)
        committed = run.weights(members)
        assert run.share(BAD, committed) == 0
        run.end(seen(members, -1, 50 + number), committed)
    members = run.begin()
    assert set(members) >= BAD
    committed = run.weights(members)
    assert run.share(BAD, committed) < 0.02
    # The second time costs them twice as long.
    for number in range(ALONE_BAD):
        members = run.begin()
        run.end(seen(members, -1, 70 + number), run.weights(members))
    assert all(run.known[client].quarantines == 2 for client in BAD)
    assert all(run.known[client].state.quarantine_rounds == 2 * FIRST_ROUNDS for client in BAD)


def test_newcomers_are_forgotten_and_weigh_as_newcomers() -> None:
    run = standing(renewed_every=2)
    for number in range(8):
        members = run.begin()
        committed = run.weights(members)
        if number % 2 == 0:
            assert all(client not in run.known for client in BAD)
        run.end(seen(members, -1, number), committed)
    assert run.ever_out == set(), "under a new name nobody has a past"
    committed = run.weights(run.begin())
    assert run.share(BAD, committed) < 2 / N / 1.5


def test_a_stated_count_weighs_up_to_the_cap() -> None:
    liar = standing(stated={11: 1 << 31})
    assert len(set(liar.weights(liar.begin()).values())) == 1
    liar.sample_bucket_cap = 8
    committed = liar.weights(liar.begin())
    assert committed[11] == 8 * committed[0] or abs(committed[11] - 8 * committed[0]) <= 4


def test_a_majority_is_never_put_away() -> None:
    run = Standing(stated=[57] * 5, sample_bucket_cap=5, renewed_every=0, attackers=frozenset())
    assert run.begin() == (0, 1, 2, 3, 4)
    committed = run.weights(run.begin())
    run.end(seen((0, 1, 2, 3, 4), 1, 3), committed)
    assert not run.ever_out
