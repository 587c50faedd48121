"""What a plan consists of: frozen types with their defaults and ranges.

Each setting carries its meaning, its range and a value that would do; refusals quote the latter.
Durations are milliseconds here and strings such as "30s" in `plan.toml`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from boltz_mesh.aggregation.server_optimizer import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    ServerOptimizer,
)
from boltz_mesh.privacy.adaptive_clip import AdaptiveClipping
from boltz_mesh.privacy.budget import Budget
from boltz_protocol import limits

Mode = Literal["sealed", "grouped", "open"]
Adversary = Literal["semi-malicious", "semi-honest"]
Privacy = Literal["client-dp", "none"]
Promotion = Literal["automatic", "operator"]
#: Rules that leave out, or hold back, what does not fit the others: they prove no sensitivity.
RobustRuleName = Literal[
    "mixed-trimmed-mean", "trimmed-mean", "coordinate-median", "multi-krum", "geometric-median"
]
Rule = Literal[
    "weighted-mean",
    "centered-clipping",
    "mixed-trimmed-mean",
    "trimmed-mean",
    "coordinate-median",
    "multi-krum",
    "geometric-median",
]
OptimizerName = Literal["fedavg", "fedavgm", "fedadam", "fedyogi"]
HyperParameter = int | float | str | bool

#: A rule needs more than twice as many rows as there are liars among them.
MAX_BYZANTINE: Final = (limits.MAX_ROBUST_ROWS - 1) // 2


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tensor of the model; the order in the plan is the order in the flat vector."""

    name: Annotated[
        str,
        Meta(
            description="unique in the model",
            min_length=1,
            max_length=limits.MAX_NAME_CHARS,
            examples=["weights"],
        ),
    ]
    shape: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=limits.MAX_COORDINATES)], ...],
        Meta(
            description="sizes of the axes, row-major; [] is one number",
            max_length=limits.MAX_TENSOR_RANK,
            examples=[[12]],
        ),
    ]
    dtype: Annotated[Literal["float32"], Meta(examples=["float32"])] = "float32"

    @property
    def size(self) -> int:
        """Coordinates of the tensor."""
        return math.prod(self.shape)


class Cohort(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many clients a round has."""

    min: Annotated[
        int,
        Meta(description="fewest updates that make a version", ge=1, examples=[3]),
    ]
    target: Annotated[
        int,
        Meta(description="updates the round aims at", ge=1, examples=[10]),
    ]
    max: Annotated[
        int,
        Meta(
            description="most clients in the roster; the encoding leaves room for their sum",
            ge=1,
            le=limits.MAX_ROSTER,
            examples=[20],
        ),
    ]
    over_selection: Annotated[
        float,
        Meta(
            description="clients selected for each update aimed at, against dropouts",
            ge=1,
            le=10,
            examples=[1.3],
        ),
    ] = 1.3


_Phase = Meta(ge=100, le=limits.MAX_PHASE_MS, examples=["30s"])


class Deadlines(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The longest that each phase may take; four of them are of sealed and grouped rounds only."""

    selecting_ms: Annotated[
        int, _Phase, Meta(description="until enough clients have checked in")
    ] = 30_000
    advertising_ms: Annotated[
        int,
        _Phase,
        Meta(description="sealed: keys; beyond 50 clients or in groups nonces as well, as long"),
    ] = 30_000
    sharing_ms: Annotated[int, _Phase, Meta(description="sealed: shares are dealt")] = 30_000
    collecting_ms: Annotated[int, _Phase, Meta(description="training and upload")] = 600_000
    checking_ms: Annotated[
        int, _Phase, Meta(description="sealed: clients sign who is in the sum")
    ] = 30_000
    unmasking_ms: Annotated[int, _Phase, Meta(description="sealed: shares are released")] = 30_000
    aggregating_ms: Annotated[int, _Phase, Meta(description="sum, noise and check")] = 300_000
    releasing_ms: Annotated[int, _Phase, Meta(description="charge and publish")] = 60_000
    recovery_extension_ms: Annotated[
        int,
        Meta(
            description="most that an outage of the mesh may add to a running phase's deadline",
            ge=0,
            le=limits.MAX_PHASE_MS,
            examples=["5m"],
        ),
    ] = 300_000


_Count = Annotated[int, Meta(ge=1, le=limits.MAX_NEIGHBOURS)]


class SecureAggregationPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a sealed round withstands; both ends compute the graph of neighbours from it."""

    corrupt_fraction: Annotated[
        float,
        Meta(
            description="share of a roster that may collude with the server",
            ge=0,
            lt=1,
            examples=[0.05],
        ),
    ] = 0.05
    # A tenth, since a round that loses more than it was made for after its charge is lost: at 5%
    # and 100 clients every fourth round would fail when in truth 10% drop out.
    dropout_fraction: Annotated[
        float,
        Meta(
            description="share of a roster that may be gone when the sum is unmasked",
            ge=0,
            lt=1,
            examples=[0.1],
        ),
    ] = 0.1
    adversary: Annotated[
        Adversary,
        Meta(
            description="semi-malicious: the server may also tell clients different things",
            examples=["semi-malicious"],
        ),
    ] = "semi-malicious"
    neighbours: Annotated[
        _Count | None,
        Meta(
            description="what you expect for `cohort.max` clients; refused unless it is the safe "
            "figure",
            examples=[26],
        ),
    ] = None
    threshold: Annotated[
        _Count | None,
        Meta(
            description="as `neighbours`: shares that unmask, for `cohort.max` clients",
            examples=[16],
        ),
    ] = None


class GroupingPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a grouped round cuts its clients into groups, each with a sum and noise of its own."""

    count: Annotated[
        int,
        Meta(
            description=f"number of groups, of {limits.MIN_GROUP} to {limits.MAX_COMPLETE_GRAPH} "
            "clients each; drawn anew in each round",
            ge=2,
            le=limits.MAX_GROUPS,
            examples=[4],
        ),
    ]
    min_survivors: Annotated[
        int,
        Meta(
            description="fewest updates of a group whose sum counts; a group with fewer is left "
            "out",
            ge=limits.MIN_SEALED_COHORT,
            le=limits.MAX_COMPLETE_GRAPH,
            examples=[5],
        ),
    ] = 5


class OptimizerPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which server optimizer, and the settings it has; the others are refused."""

    name: Annotated[OptimizerName, Meta(examples=["fedavg"])] = "fedavg"
    learning_rate: Annotated[
        float | None,
        Meta(
            description="1.0 for fedavg and fedavgm, 0.01 for fedadam and fedyogi", examples=[1.0]
        ),
    ] = None
    momentum: Annotated[float | None, Meta(description="fedavgm: 0.9", examples=[0.9])] = None
    beta1: Annotated[float | None, Meta(description="adaptive: 0.9", examples=[0.9])] = None
    beta2: Annotated[float | None, Meta(description="adaptive: 0.99", examples=[0.99])] = None
    tau: Annotated[float | None, Meta(description="adaptive: 1e-3", examples=[1e-3])] = None

    def given(self) -> dict[str, float]:
        """The settings that the plan names, in the order above."""
        values = msgspec.structs.asdict(self)
        return {key: value for key, value in values.items() if key != "name" and value is not None}

    def resolved(self) -> OptimizerPlan:
        """With every setting the optimizer has: what is stored must not change with a default."""
        settings = dataclasses.asdict(OPTIMIZERS[self.name](**self.given()))
        return OptimizerPlan(name=self.name, **settings)

    def build(self) -> ServerOptimizer:
        """The optimizer, with the paper's defaults where the plan is silent."""
        return OPTIMIZERS[self.name](**self.given())


#: Plan word -> optimizer.
OPTIMIZERS: Final[dict[OptimizerName, type[FedAvg | FedAvgM | FedAdam | FedYogi]]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}


class Lane(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number beside the delta (a sample-weighted loss, say), clipped and noised with it."""

    name: Annotated[
        str, Meta(min_length=1, max_length=limits.MAX_NAME_CHARS, examples=["train-loss"])
    ]
    scale: Annotated[
        float,
        Meta(
            description="what a lane of 1.0 takes of the clip norm, in the delta's unit",
            gt=0,
            examples=[0.01],
        ),
    ]


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model and how it is trained: what `plan.toml` says."""

    model: Annotated[
        str, Meta(description="model id: 1 to 63 of a-z 0-9 . -", examples=["volatility-linear"])
    ]
    tensors: Annotated[
        tuple[TensorSpec, ...],
        Meta(
            min_length=1,
            max_length=limits.MAX_TENSORS,
            examples=[[{"name": "weights", "shape": [12]}]],
        ),
    ]
    cohort: Annotated[Cohort, Meta(examples=[{"min": 3, "target": 10, "max": 20}])]
    mode: Annotated[
        Mode, Meta(description="what the server can see: docs/security.md", examples=["sealed"])
    ] = "sealed"
    secure_aggregation: Annotated[
        SecureAggregationPlan | None,
        Meta(
            description="only in sealed and grouped rounds",
            examples=[{"corrupt_fraction": 0.05, "dropout_fraction": 0.1}],
        ),
    ] = None
    grouping: Annotated[
        GroupingPlan | None,
        Meta(description="only in grouped rounds, which need it", examples=[{"count": 4}]),
    ] = None
    rule: Annotated[Rule, Meta(examples=["weighted-mean"])] = "weighted-mean"
    byzantine: Annotated[
        int,
        Meta(
            description="liars that the rule withstands: clients in open rounds, groups with a "
            "liar in grouped ones; above 0 the rule is mixed-trimmed-mean unless one is named",
            ge=0,
            le=MAX_BYZANTINE,
            examples=[1],
        ),
    ] = 0
    centered_radius: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(
            description="only with centered-clipping, 0.5 there: longest way of an update from the "
            "last published mean, over the clip norm",
            examples=[0.5],
        ),
    ] = None
    clip_norm: Annotated[
        float,
        Meta(
            description="L2 bound of one client's delta and lanes",
            ge=limits.MIN_CLIP_NORM,
            le=limits.MAX_CLIP_NORM,
            examples=[1.0],
        ),
    ]
    privacy: Annotated[
        Privacy,
        Meta(description="none: no noise, and no epsilon is printed", examples=["client-dp"]),
    ]
    adaptive_clipping: Annotated[
        AdaptiveClipping | None,
        Meta(
            description="the clip norm follows the norms of the updates, from `clip_norm` on",
            examples=[{"quantile": 0.5}],
        ),
    ] = None
    noise_multiplier: Annotated[
        float,
        Meta(
            description="noise on the sum over its sensitivity (declared by the rule); 0 with none",
            ge=0,
            le=limits.MAX_NOISE_MULTIPLIER,
            examples=[1.0],
        ),
    ] = 0.0
    budget: Annotated[
        Budget | None,
        Meta(
            description="per client, or per client and period; only with client-dp",
            examples=[{"epsilon": 2.0, "delta": 1e-6}],
        ),
    ] = None
    promotion: Annotated[
        Promotion,
        Meta(description="who makes a candidate the live version", examples=["operator"]),
    ] = "operator"
    deadlines: Deadlines = Deadlines()
    server_optimizer: OptimizerPlan = OptimizerPlan()
    hyper_parameters: Annotated[
        dict[str, HyperParameter],
        Meta(
            description="passed to every client's trainer as they are",
            examples=[{"epochs": 2}],
        ),
    ] = {}
    lanes: Annotated[tuple[Lane, ...], Meta(max_length=limits.MAX_LANES)] = ()
    sample_bucket_cap: Annotated[
        int,
        Meta(
            description="samples beyond 2^cap add no weight; set it to what an honest client "
            "has, since a liar may claim any number up to it",
            ge=0,
            le=limits.MAX_SAMPLE_BUCKET,
            examples=[10],
        ),
    ] = 10
    weight_share_cap: Annotated[
        float,
        Meta(
            description="largest share of a round's total weight that one client may have",
            gt=0,
            le=1,
            examples=[1.0],
        ),
    ] = 1.0
    regions: Annotated[
        tuple[str, ...],
        Meta(description="take clients of these regions only; empty: of any", examples=[["eu"]]),
    ] = ()

    @property
    def parameters(self) -> int:
        """Coordinates of the model."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def sealing(self) -> SecureAggregationPlan:
        """What a sealed round withstands, with the defaults where the plan is silent."""
        assert self.is_masked, "an open round has no graph"
        return self.secure_aggregation or SecureAggregationPlan()

    @property
    def is_masked(self) -> bool:
        """Whether clients mask their updates and share the noise: in sealed and grouped rounds."""
        return self.mode != "open"

    @property
    def coordinates(self) -> int:
        """Coordinates of an encoded update: parameters, then lanes, the clip indicator's last."""
        return self.parameters + len(self.lanes) + (self.adaptive_clipping is not None)
