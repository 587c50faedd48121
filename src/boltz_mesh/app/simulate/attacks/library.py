"""All attacks by name, at the strengths that the command and the matrix use."""

from __future__ import annotations

from typing import Final

from boltz_mesh.app.simulate.attacks.conduct import OnOff
from boltz_mesh.app.simulate.attacks.distances import Mimic, MinMax, MinSum
from boltz_mesh.app.simulate.attacks.poison import BACKDOOR, Boosted, flipped, marked
from boltz_mesh.app.simulate.attacks.sight import Attack, honestly
from boltz_mesh.app.simulate.attacks.vectors import (
    Alie,
    FreeRider,
    Gaussian,
    InnerProduct,
    Scaling,
    SignFlip,
)

#: More rows than anybody has: the largest bucket that can be stated.
_INFLATED_ROWS: Final = 1 << 31
#: Rounds that a newcomer stays before it comes back under another name.
_SYBIL_ROUNDS: Final = 2

ATTACKS: Final[tuple[Attack, ...]] = (
    Attack(
        "sign-flip", "their own delta turned round and ten times as long", "Li 2019", SignFlip()
    ),
    Attack("scaling", "their own delta a hundred times as long", "Bhagoji 2019", Scaling()),
    Attack("gaussian", "normal noise, 200 a coordinate", "Blanchard 2017", Gaussian()),
    Attack("alie", "the honest mean and 1.5 honest deviations on top", "Baruch 2019", Alie()),
    Attack("inner-product", "minus ten times the honest mean", "Xie 2020", InnerProduct()),
    Attack(
        "min-max",
        "as far beyond the honest mean as two honest clients lie apart",
        "Shejwalkar and Houmansadr 2021",
        MinMax(),
    ),
    Attack(
        "min-sum",
        "as far beyond the honest mean as the sum of honest distances allows",
        "Shejwalkar and Houmansadr 2021",
        MinSum(),
    ),
    Attack(
        "mimic", "all repeat the honest client that is furthest out", "Karimireddy 2022", Mimic()
    ),
    Attack(
        "label-flip", "train on targets that are mirrored", "Fang 2020", honestly, poison=flipped
    ),
    Attack(
        "backdoor",
        "train on a marked pattern, delta n/f times as long",
        "Bagdasaryan 2020",
        Boosted(),
        poison=marked,
        trigger=BACKDOOR,
    ),
    Attack(
        "free-rider",
        "the last published mean again, with a little noise",
        "Fraboni 2021",
        FreeRider(),
    ),
    Attack(
        "on-off", "honest for half of the rounds, then sign-flip", "Sun 2008", OnOff(SignFlip())
    ),
    Attack(
        "sybil",
        "sign-flip under a new name every two rounds",
        "Douceur 2002",
        SignFlip(),
        renewed_every=_SYBIL_ROUNDS,
    ),
    Attack(
        "inflated-counts",
        "their own delta turned round, with two thousand million rows stated",
        "Portnoy 2022",
        SignFlip(factor=1.0),
        stated_rows=_INFLATED_ROWS,
    ),
)
