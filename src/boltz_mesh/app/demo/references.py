"""What the federation is compared with: every row of the table that no mesh is needed for.

Strengths (a ridge, or passes over the rows) are chosen on the calendar's tuning origins, by the
mean error over all stocks, and never on a tested year beyond them.

Three rows exist so that nobody is misled by a weak comparison. `public_start` is the model
that every round starts from. `best_local_any_strength` may shrink to it as far as it likes, which
a quarter of one stock does: the most that one desk's own data is worth. And
`public_index_all_history` uses every year of the index, where `public_index` uses the newest eight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from boltz_mesh.app.demo import linear, mlp
from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.demo.evaluation import ErrorTable, evaluate, evaluate_linear, network_market
from boltz_mesh.app.demo.settings import TWO_YEARS, DeskLayout, Preset
from boltz_mesh.app.demo.task import Market, Rows, desk_rows, newest_rows, stack

#: Ridge strengths of the reference models, in octaves. One quarter of one stock chooses the last
#: of them, so the grid binds: `best_local_any_strength` says what lies beyond it.
STRENGTHS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
#: The same, far enough that the model is the public start.
ANY_STRENGTHS: Final = (*STRENGTHS, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
#: Eight years: as long as the whitening window.
PUBLIC_ROWS: Final = 2000
#: Where the calendar has no year to tune on: what skfolio's tuning years choose.
DEFAULT_LOCAL_STRENGTH: Final = 4.0
DEFAULT_PUBLIC_STRENGTH: Final = 1.0
#: A broker that never took part has just this: its stock's newest quarter, no desks to separate.
COLD_START_ROWS: Final = 63
#: Rounds' worth of passes that a cold broker's own network may train for.
COLD_START_ROUNDS: Final = (1, 2, 3, 5, 10, 20)
#: The brokers are left out of the federation in turn, a fifth of them at a time.
COLD_START_COHORTS: Final = 5


def table(
    market: Market, origins: Sequence[int], preset: Preset, *, cold_start: bool = True
) -> dict[str, ErrorTable]:
    """Every reference row, named as in the report.

    Args:
        market: every stock.
        origins: years to test.
        preset: desks and training settings of the federation compared with.
        cold_start: the two slow rows (networks trained in numpy) too.
    """
    rows = {
        "naive": naive(market, origins),
        "ewma": ewma(market, origins),
        "public_start": public_start(market, origins),
        "ewma_own_bias": ewma_own_bias(market, origins, preset.layout),
        "best_local": best_local(market, origins, preset.layout),
        "best_local_any_strength": best_local(market, origins, preset.layout, ANY_STRENGTHS),
        "public_index": public_index(market, origins),
        "public_index_all_history": public_index(market, origins, rows=None),
    }
    if preset.ridge > 0:
        rows["pooled"] = pooled(market, origins, preset)
    if cold_start:
        rows["cold_start_federated"] = cold_start_federated(market, origins)
        rows["cold_start_best_local"] = cold_start_best_local(market, origins)
    return rows


def naive(market: Market, origins: Sequence[int]) -> ErrorTable:
    """The next five days are as volatile as the last 22."""
    mse = np.empty((len(origins), len(market.stocks)))
    for row, origin in enumerate(origins):
        for column, stock in enumerate(market.stocks):
            of_year = (market.public.years == origin) & np.isfinite(stock.target)
            mse[row, column] = np.mean((stock.target - stock.naive)[of_year] ** 2)
    return ErrorTable(tuple(origins), tuple(stock.name for stock in market.stocks), mse)


def ewma(market: Market, origins: Sequence[int]) -> ErrorTable:
    """The EWMA itself: a residual of zero."""
    return evaluate(market, origins, lambda *_: np.zeros(()))


def public_start(market: Market, origins: Sequence[int]) -> ErrorTable:
    """The EWMA plus the index's mean residual to date: the model before the first round."""
    models = {origin: linear.start(market.public, origin) for origin in origins}
    return evaluate_linear(market, models)


def ewma_own_bias(market: Market, origins: Sequence[int], layout: DeskLayout) -> ErrorTable:
    """The EWMA plus the mean residual of the stock's newest desk."""
    return evaluate(
        market,
        origins,
        lambda origin, stock, _: _newest_desk(market, origin, stock, layout).target.mean(),
    )


def best_local(
    market: Market,
    origins: Sequence[int],
    layout: DeskLayout,
    strengths: Sequence[float] = STRENGTHS,
) -> ErrorTable:
    """Each broker alone: ridge on its newest desk, shrunk to the public start."""

    def errors(strength: float, years: Sequence[int]) -> ErrorTable:
        def forecast(origin: int, stock: int, inputs: FloatArray) -> FloatArray:
            rows = _newest_desk(market, origin, stock, layout)
            toward = linear.start(market.public, origin)
            return linear.predict(linear.fit(rows, toward, strength, strength), inputs)

        return evaluate(market, years, forecast)

    strength = choose(market, strengths, errors, DEFAULT_LOCAL_STRENGTH)
    return errors(strength, origins)


def public_index(
    market: Market, origins: Sequence[int], rows: int | None = PUBLIC_ROWS
) -> ErrorTable:
    """Ridge on the public index alone, shrunk to the public start; `rows` None is all history."""
    known = market.public

    def errors(strength: float, years: Sequence[int]) -> ErrorTable:
        models = {}
        for origin in years:
            count = known.known_rows(origin) if rows is None else rows
            newest = newest_rows(known.index, known, origin, count)
            # The index's own level is not in doubt: its bias is free.
            models[origin] = linear.fit(newest, linear.start(known, origin), strength, 0.0)
        return evaluate_linear(market, models)

    strength = choose(market, STRENGTHS, errors, DEFAULT_PUBLIC_STRENGTH)
    return errors(strength, origins)


def pooled(market: Market, origins: Sequence[int], preset: Preset) -> ErrorTable:
    """All desks' rows in one place, one solve with the desks' own ridge: what privacy forgoes."""
    models = {}
    for origin in origins:
        rows = stack(all_desks(market, origin, preset.layout))
        models[origin] = linear.fit(rows, linear.start(market.public, origin), preset.ridge)
    return evaluate_linear(market, models)


def federated(
    market: Market,
    origins: Sequence[int],
    preset: Preset,
    generator: np.random.Generator | None = None,
) -> dict[int, FloatArray]:
    """The linear federation without a mesh: origin -> model. An oracle, not a row of the table.

    Args:
        market: every stock.
        origins: years to train for.
        preset: desks and settings.
        generator: with one, noise of the preset's multiplier is added in each round.
    """
    models = {}
    for origin in origins:
        desks = all_desks(market, origin, preset.layout)
        steps = [linear.local_step(rows, preset.ridge) for rows in desks]
        noise = 0.0 if generator is None else preset.noise_multiplier
        models[origin] = linear.simulate(
            linear.start(market.public, origin),
            steps,
            rounds=preset.rounds,
            clip_norm_l2=preset.clip_norm_l2,
            noise_multiplier=noise,
            generator=generator,
        )[-1]
    return models


def federated_mlp(
    market: Market, origins: Sequence[int], rounds: int, members: Sequence[int] | None = None
) -> dict[int, FloatArray]:
    """The network's federation without a mesh: origin -> model (241,), two years a broker.

    Args:
        market: every stock.
        origins: years to train for.
        rounds: of federated averaging.
        members: which stocks take part; all of them where it is not given.
    """
    network = network_market(market)
    chosen = range(len(market.stocks)) if members is None else members
    desks = [
        [desk_rows(network.stocks[i], network.public, origin, TWO_YEARS, 0) for i in chosen]
        for origin in origins
    ]
    inputs = np.array([[rows.inputs for rows in row] for row in desks])
    target = np.array([[rows.target for rows in row] for row in desks])
    first = np.array([mlp.start(market.public, origin) for origin in origins], dtype=np.float64)
    last = mlp.simulate(first, inputs, target, rounds)
    return dict(zip(origins, last, strict=True))


def cold_start_federated(market: Market, origins: Sequence[int], rounds: int = 20) -> ErrorTable:
    """The network, tested on brokers that never took part in its training."""
    stocks = range(len(market.stocks))
    cohorts = min(COLD_START_COHORTS, len(stocks))
    models: dict[int, Mapping[int, FloatArray]] = {}
    for turn in range(cohorts):
        members = [stock for stock in stocks if stock % cohorts != turn]
        models[turn] = federated_mlp(market, origins, rounds, members)
    return evaluate(
        network_market(market),
        origins,
        lambda origin, stock, inputs: mlp.predict(models[stock % cohorts][origin], inputs),
    )


def cold_start_best_local(market: Market, origins: Sequence[int]) -> ErrorTable:
    """The same network trained by such a broker alone, on its newest quarter."""
    network = network_market(market)
    years = tuple(sorted({*origins, *market.public.calendar.tuning}))
    inputs, target = _quarters(network, years)
    first = np.array([mlp.start(market.public, origin) for origin in years], dtype=np.float64)
    models = np.repeat(first[:, None], len(market.stocks), axis=1)
    trained: dict[float, FloatArray] = {}
    done = 0
    for rounds in COLD_START_ROUNDS:
        models = mlp.descend(models, inputs, target, mlp.EPOCHS * (rounds - done))
        trained[float(rounds)], done = models, rounds

    def errors(rounds: float, tested: Sequence[int]) -> ErrorTable:
        of = trained[rounds]
        return evaluate(
            network,
            tested,
            lambda origin, stock, x: mlp.predict(of[years.index(origin), stock], x),
        )

    return errors(choose(market, tuple(trained), errors, 1.0), origins)


def choose(
    market: Market,
    strengths: Sequence[float],
    errors: Callable[[float, Sequence[int]], ErrorTable],
    default: float,
) -> float:
    """The strength with the least mean error on the tuning origins, or the default without any."""
    tuning = market.public.calendar.tuning
    if not tuning:
        return default
    return min(strengths, key=lambda strength: errors(strength, tuning).mean)


def all_desks(market: Market, origin: int, layout: DeskLayout) -> list[Rows]:
    """The rows of every desk: broker by broker, the newest desk first."""
    return [
        desk_rows(stock, market.public, origin, layout, desk)
        for stock in market.stocks
        for desk in range(layout.per_broker)
    ]


def _newest_desk(market: Market, origin: int, stock: int, layout: DeskLayout) -> Rows:
    return desk_rows(market.stocks[stock], market.public, origin, layout, 0)


def _quarters(network: Market, years: Sequence[int]) -> tuple[FloatArray, FloatArray]:
    """A cold broker's rows: inputs (years, stocks, 63, 13) and targets (years, stocks, 63)."""
    rows = [
        [newest_rows(stock, network.public, year, COLD_START_ROWS) for stock in network.stocks]
        for year in years
    ]
    inputs = np.array([[part.inputs for part in line] for line in rows])
    return inputs, np.array([[part.target for part in line] for line in rows])
