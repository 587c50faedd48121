"""What one run of the demo is asked to do: the calendar, the desks, and the training settings.

The presets were fixed on the origins 1999 to 2008; the later origins only test them. Details of
the task that the first study's write-up left open (the slow window, the damping and bound of the
features, the grid and the eight years of two references) were set afterwards so as to reproduce its
figures, which cover every origin: they are not blind, though none was set to lower an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from boltz_mesh.app.demo.data import DateArray, MarketDataInvalid
from boltz_mesh.privacy.mechanisms import RELATION_WORDS

ModelKind = Literal["linear", "mlp"]
TrainerKind = Literal["numpy", "torch"]

#: Years of the index whose principal components whiten the features: public, and before any test.
WHITENING_YEARS: Final = 8
#: Strengths of the reference models are chosen on at most this many origins, the earliest ones.
TUNING_ORIGINS: Final = 10
#: Origins that the default run tests, the newest ones: four years, fixed in advance.
DEFAULT_TESTED: Final = 4


@dataclass(frozen=True, slots=True)
class Calendar:
    """Which years do what. An origin is a year: trained before its first day, tested on it.

    Attributes:
        whitening: first and last year of the index's whitening window.
        origins: every year that can be tested.
        tuning: the origins on which reference models choose their strength; may be empty.
    """

    whitening: tuple[int, int]
    origins: tuple[int, ...]
    tuning: tuple[int, ...]

    def newest(self, count: int = DEFAULT_TESTED) -> tuple[int, ...]:
        """The origins of the default run."""
        return self.origins[-count:]


def calendar_for(dates: DateArray) -> Calendar:
    """The calendar of a price history, from its first and last date.

    skfolio's history (1990 to 2022) gives whitening on 1991 to 1998, origins 1999 to 2022 and
    tuning on 1999 to 2008. The first year only warms the slow volatility up.

    Raises:
        MarketDataInvalid: fewer than ten calendar years.
    """
    first, last = (int(day.astype("datetime64[Y]").astype(int)) + 1970 for day in dates[[0, -1]])
    whitening = (first + 1, first + WHITENING_YEARS)
    origins = tuple(range(whitening[1] + 1, last + 1))
    if not origins:
        raise MarketDataInvalid(
            f"the prices run from {first} to {last}: at least {WHITENING_YEARS + 2} calendar "
            "years are needed (one to warm up, eight of the index to whiten, one to test)"
        )
    # Never tune on what the default run tests.
    tuning = (
        origins[:TUNING_ORIGINS] if len(origins) > TUNING_ORIGINS else origins[:-DEFAULT_TESTED]
    )
    return Calendar(whitening, origins, tuning)


@dataclass(frozen=True, slots=True)
class DeskLayout:
    """How a broker's rows are dealt to its desks, counted back from the origin.

    Attributes:
        per_broker: desks of one broker, the newest first.
        block_rows: rows from one desk's newest row to the next desk's.
        kept_rows: the oldest rows of a block that the desk trains on. The rest are dropped, so
            that no label reaches into the next desk's rows.
    """

    per_broker: int
    block_rows: int
    kept_rows: int

    @property
    def unit(self) -> str:
        """What one client is, in words for the report."""
        span = "two years" if self.kept_rows >= TWO_YEARS.kept_rows else "one quarter"
        return f"one desk: one stock over {span} ({self.kept_rows} days)"


#: A desk is one stock and one quarter. A label spans five days, hence 62 - 5.
QUARTERS_3: Final = DeskLayout(per_broker=3, block_rows=62, kept_rows=57)
QUARTERS_15: Final = DeskLayout(per_broker=15, block_rows=62, kept_rows=57)
#: A desk is one stock and two years.
TWO_YEARS: Final = DeskLayout(per_broker=1, block_rows=490, kept_rows=490)


@dataclass(frozen=True, slots=True)
class Preset:
    """Desks and training settings that belong together.

    Attributes:
        layout: the desks.
        rounds: per origin.
        clip_norm_l2: C. For the network 1.0, over twice its longest delta (0.39 on the sample):
            it never bites, and there is no privacy to calibrate.
        ridge: lambda of the local step (all coordinates but the bias); 0.0 for the network.
        epsilon: at `DELTA`, for one desk and one training run; None without noise.
        noise_multiplier: standard deviation of the noise in the sum, in units of C.
    """

    layout: DeskLayout
    rounds: int
    clip_norm_l2: float
    ridge: float
    epsilon: float | None
    noise_multiplier: float


DELTA: Final = 1e-5
#: What every epsilon of the demo is about, unless it says otherwise.
SCOPE: Final = (
    f"at delta {DELTA:g}, one desk, {RELATION_WORDS['contribution-set-to-zero']}, one training run"
)
#: `--clients`, for the usual 20 brokers.
PRESET_60: Final = Preset(QUARTERS_3, 4, 0.08, 2.0, 2.0, 3.98)
PRESET_300: Final = Preset(QUARTERS_15, 8, 0.04, 4.0, 1.0, 10.55)
PRESET_20: Final = Preset(TWO_YEARS, 8, 0.01875, 1.0, 4.0, 3.06)
#: `--model mlp`: federated averaging without noise.
PRESET_MLP: Final = Preset(TWO_YEARS, 20, 1.0, 0.0, None, 0.0)
_BY_DESKS: Final = {3: PRESET_60, 15: PRESET_300, 1: PRESET_20}


def preset_for(model: ModelKind, clients: int, brokers: int) -> Preset | None:
    """The preset of a number of clients, or None where there is none for it.

    Args:
        model: the network has one layout, two years a broker, whatever `clients` says.
        clients: desks in all.
        brokers: stocks in the data; 20 for the sample.
    """
    if model == "mlp":
        return PRESET_MLP
    return None if clients % brokers else _BY_DESKS.get(clients // brokers)
