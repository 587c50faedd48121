"""`plan.toml`: reading it strictly, and the canonical JSON in which a plan is stored.

TOML text -> `Plan` by `plan_from_toml`; `Plan` <-> JSON bytes by `plan_to_json`/`plan_from_json`.
Both readers refuse unknown settings (naming the nearest known one) and check the plan as a whole.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from decimal import Decimal
from typing import Any, Final, get_args

import msgspec

from boltz_mesh.privacy.adaptive_clip import AdaptiveClipping
from boltz_mesh.privacy.budget import Budget
from boltz_mesh.rounds.plan_checks import validate_encoding, validate_plan
from boltz_mesh.rounds.plan_refusal import refuse
from boltz_mesh.rounds.plan_robust import with_default_rule
from boltz_mesh.rounds.plan_rule import radius_of
from boltz_mesh.rounds.plan_types import (
    Cohort,
    Deadlines,
    GroupingPlan,
    HyperParameter,
    Lane,
    OptimizerPlan,
    Plan,
    SecureAggregationPlan,
    TensorSpec,
)
from boltz_protocol.errors import InvalidPlan

__all__ = [
    "Cohort",
    "Deadlines",
    "GroupingPlan",
    "HyperParameter",
    "Lane",
    "OptimizerPlan",
    "Plan",
    "SecureAggregationPlan",
    "TensorSpec",
    "duration_ms",
    "example_plan",
    "plan_digest",
    "plan_from_json",
    "plan_from_toml",
    "plan_to_json",
    "validate_encoding",
    "validate_plan",
]

#: Far more than MAX_TENSORS tensors with long names take.
MAX_PLAN_BYTES: Final = 4 << 20

_UNITS_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_MAX_DURATION_CHARS: Final = 32
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+")
_DURATION_PART: Final = re.compile(r"([0-9.]+)(ms|s|m|h)")

_INDEX: Final = re.compile(r"\[[^\]]*\]")
_MISSING: Final = re.compile(r"missing required field `(\w+)`")
#: `Budget` is no part of this file and carries no examples.
_BUDGET_EXAMPLES: Final = {
    "budget.epsilon": "2.0",
    "budget.delta": "1e-5",
    "budget.unit": '"client"',
    "budget.start": "2026-10-01",
    "budget.end": "2027-01-01",
}

#: Tables of a plan and the type whose fields they may have; `[]` stands for each list entry.
_TABLES: Final[dict[str, type]] = {
    "": Plan,
    "tensors[]": TensorSpec,
    "cohort": Cohort,
    "deadlines": Deadlines,
    "secure_aggregation": SecureAggregationPlan,
    "grouping": GroupingPlan,
    "server_optimizer": OptimizerPlan,
    "lanes[]": Lane,
    "budget": Budget,
    "adaptive_clipping": AdaptiveClipping,
}


def plan_from_toml(text: str) -> Plan:
    """Read `plan.toml`.

    Raises: InvalidPlan, naming the setting and a value that would do.
    """
    _check_size(len(text.encode()))
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidPlan(f"this is not TOML: {error}") from error
    return _checked(_with_milliseconds(raw))


def plan_from_json(data: bytes) -> Plan:
    """Read what `plan_to_json` wrote. Raises: InvalidPlan."""
    _check_size(len(data))
    try:
        raw = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise InvalidPlan(f"a stored plan is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidPlan("a stored plan is not a JSON object")
    return _checked(raw)


def plan_to_json(plan: Plan) -> bytes:
    """Canonical UTF-8 JSON: every setting, defaults included, keys sorted, no white space."""
    return msgspec.json.encode(plan, order="sorted")


def plan_to_toml_table(plan: Plan) -> dict[str, Any]:
    """The plan as the table of a `plan.toml` that says the same, every setting named."""
    table = _without_none(msgspec.to_builtins(plan))
    table["server_optimizer"] = {"name": plan.server_optimizer.name} | (
        plan.server_optimizer.given()
    )
    table["deadlines"] = {
        name.removesuffix("_ms"): f"{value}ms" for name, value in table["deadlines"].items()
    }
    return table


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    """TOML has no word for a setting that is not there."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def plan_digest(plan: Plan) -> bytes:
    """SHA-256 of the canonical JSON (32 bytes)."""
    return hashlib.sha256(plan_to_json(plan)).digest()


def duration_ms(setting: str, text: object) -> int:
    """Milliseconds in "250ms", "30s", "1.5h" or "1m30s". Raises: InvalidPlan."""
    if (
        not isinstance(text, str)
        or len(text) > _MAX_DURATION_CHARS
        or _DURATION.fullmatch(text) is None
    ):
        raise refuse(
            setting,
            f"{_shown(text)} is not a duration",
            'a string with units such as "30s" would do',
        )
    parts = _DURATION_PART.findall(text)
    total = sum((Decimal(number) * _UNITS_MS[unit] for number, unit in parts), Decimal(0))
    if total != total.to_integral_value():
        raise refuse(setting, f"{text!r} has parts of a millisecond", '"1ms" would do')
    return int(total)


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_PLAN_BYTES:
        raise InvalidPlan(f"the plan has {size_bytes} bytes; at most {MAX_PLAN_BYTES} would do")


def _with_milliseconds(raw: dict[str, Any]) -> dict[str, Any]:
    """TOML's `collecting = "10m"` becomes `collecting_ms = 600000`."""
    deadlines = raw.get("deadlines")
    if not isinstance(deadlines, dict):
        return raw
    known = [name.removesuffix("_ms") for name in Deadlines.__struct_fields__]
    converted = {}
    for key, value in deadlines.items():
        if key not in known:
            raise _unknown("deadlines", key, known)
        converted[f"{key}_ms"] = duration_ms(f"deadlines.{key}", value)
    return {**raw, "deadlines": converted}


def _checked(raw: dict[str, Any]) -> Plan:
    _refuse_unknown(raw)
    _refuse_hyper_parameter_types(raw.get("hyper_parameters"))
    try:
        plan = msgspec.convert(with_default_rule(raw), Plan)
    except msgspec.ValidationError as error:
        raise _from_validation(error) from error
    validate_plan(plan)
    # What is stored must not change with a default.
    return msgspec.structs.replace(
        plan,
        server_optimizer=plan.server_optimizer.resolved(),
        secure_aggregation=plan.sealing if plan.is_masked else None,
        centered_radius=radius_of(plan) if plan.rule == "centered-clipping" else None,
        adaptive_clipping=None
        if plan.adaptive_clipping is None
        else plan.adaptive_clipping.resolved(plan.clip_norm),
    )


def _refuse_unknown(raw: dict[str, Any]) -> None:
    for path, kind in _TABLES.items():
        name = path.removesuffix("[]")
        value: Any = raw if path == "" else raw.get(name)
        tables = value if path.endswith("[]") and isinstance(value, list) else [value]
        known = list(kind.__annotations__)
        for position, table in enumerate(tables):
            if not isinstance(table, dict):
                continue  # wrong types are refused by the conversion, which names them
            where = f"{name}[{position}]" if path.endswith("[]") else name
            for key in table:
                if key not in known:
                    raise _unknown(where, key, known)


def _unknown(where: str, key: str, known: list[str]) -> InvalidPlan:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
    setting = f"{where}.{key}" if where else key
    return refuse(setting, "no such setting", f"did you mean `{nearest}`?")


def _refuse_hyper_parameter_types(table: object) -> None:
    """msgspec does not name the key of a table's wrong value; a person wants to know it."""
    if not isinstance(table, dict):
        return
    for name, value in table.items():
        if not isinstance(value, get_args(HyperParameter)):
            raise refuse(
                f"hyper_parameters.{name}",
                f"{_shown(value)} is neither a number, a string nor a bool",
                "0.1 would do",
            )


def _from_validation(error: msgspec.ValidationError) -> InvalidPlan:
    """msgspec's "Expected `int`, got `str` - at `$.cohort.min`" with an example that would do."""
    problem, _, at = str(error).partition(" - at `")
    path = at.rstrip("`").removeprefix("$").removeprefix(".")
    if missing := _MISSING.search(problem):
        path = f"{path}.{missing[1]}".removeprefix(".")
        problem = "is missing"
    example = _example_of(path)
    if path.startswith("deadlines.") and path.endswith("_ms"):
        path = path.removesuffix("_ms")
        problem = f"{problem}, in milliseconds"
    return refuse(path or "plan", problem, f"{example} would do" if example else "see the example")


def _example_of(path: str) -> str | None:
    """The example of the setting at `path`, from its description, as TOML."""
    if path in _BUDGET_EXAMPLES:
        return _BUDGET_EXAMPLES[path]
    # An entry's own path ends in its index; what would do is said for the whole list.
    table, _, field = _INDEX.sub("[]", path).rpartition(".")
    field = field.split("[]")[0]
    kind = _TABLES.get(table)
    if kind is None or field not in kind.__annotations__:
        return None
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"][field]
    return _toml(schema["examples"][0]) if "examples" in schema else None


def _toml(value: object) -> str:
    """A value as TOML writes it inline; JSON but for tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return msgspec.json.encode(value).decode()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def example_plan() -> str:
    """A complete `plan.toml` with every setting explained; it is valid as it stands."""
    return _EXAMPLE


_EXAMPLE: Final = """\
# A model and how the mesh trains it. Apply with `boltz-mesh plan apply plan.toml`.
# A setting that is left out has the value shown, unless it is marked `required`.

model = "volatility-linear"       # required; 1 to 63 of a-z 0-9 . -
mode = "sealed"                   # the server sees one noised sum; "grouped": one a group;
                                  # "open": each delta, in memory
rule = "weighted-mean"            # open rounds: or "centered-clipping", which clips the way from
                                  # the last published mean to centered_radius * clip_norm (0.5)
byzantine = 0                     # liars to withstand: clients in open rounds without noise,
                                  # groups in grouped ones. Above 0 the rule is by default
                                  # "mixed-trimmed-mean", and may be "trimmed-mean", "multi-krum",
                                  # "coordinate-median" or "geometric-median", the last two of which
                                  # take byzantine = 0 as well

clip_norm = 0.08                  # required; L2 bound of one client's delta, lanes included
privacy = "client-dp"             # required; or "none": no noise, and no epsilon is printed
noise_multiplier = 4.0            # noise on the sum / its sensitivity; default 0, for "none"

promotion = "operator"            # who makes a candidate live: "operator" or "automatic"
sample_bucket_cap = 10            # samples beyond 2^10 add no weight; set it to what an honest
                                  # client has, since a liar may claim any number up to it
weight_share_cap = 1.0            # largest share of a round's weight that one client may have
regions = []                      # only clients of these regions; empty: of any

# What may be spent on one client's contribution over the life of the model, its contribution
# set to zero being the difference. Required with "client-dp", refused with "none".
[budget]
epsilon = 2.0
delta = 1e-5                      # at most 1 / cohort.max
unit = "client"                   # or "client-period": anew for each period, by start and end
# start = 2026-10-01              # first day (UTC) on which rounds may start; default: any
# end = 2027-01-01                # the day from which they may not; default: never

# The clip norm follows the norms of the clients' updates, from clip_norm on; off without the table:
# [adaptive_clipping]
# quantile = 0.5                  # share of the weight whose updates are to be within the clip norm
# learning_rate = 0.2             # most that the logarithm of the clip norm moves in a round
# bit_share = 0.2                 # of the clip norm, for the bit that each client sends along
# min = 0.001                     # the clip norm stays within these bounds; a thousandth of
# max = 2.0                       # clip_norm and a thousand times clip_norm where they are left out

[[tensors]]                       # required, once for each tensor, in the order of the vector
name = "weights"
shape = [12]
dtype = "float32"

[cohort]
min = 20                          # required; fewest updates that make a version
target = 60                       # required; updates the round aims at
max = 80                          # required; most clients in a round (up to 10000)
over_selection = 1.3              # clients selected for each update aimed at

[deadlines]                       # strings with ms, s, m, h; each from 100ms to 12h
selecting = "30s"
advertising = "30s"               # sealed: keys, and as long again for nonces (beyond 50 clients,
                                  # or in groups)
sharing = "30s"                   # sealed: clients deal shares of their keys; training goes on
collecting = "10m"
checking = "30s"                  # sealed: clients sign who is in the sum
unmasking = "30s"                 # sealed: clients release shares
aggregating = "5m"
releasing = "1m"
recovery_extension = "5m"         # most that an outage of the mesh adds to a deadline

# What a sealed or grouped round withstands; refused with "open". The number of neighbours and the
# threshold follow from it and from the roster. A plan that names them
# (neighbours = 22, threshold = 14) is refused unless they are the safe pair for cohort.max clients,
# or in groups for the largest group.
[secure_aggregation]
corrupt_fraction = 0.05           # of the roster, may collude with the server
dropout_fraction = 0.1            # of the roster, may be gone when the sum is unmasked
adversary = "semi-malicious"      # or "semi-honest": a server that follows the protocol

# Required with mode = "grouped", refused with other modes. Groups have 5 to 50 clients:
# [grouping]
# count = 4                       # required; groups, drawn anew in each round
# min_survivors = 5               # fewest updates of a group that counts

# fedavg: learning_rate (1.0). fedavgm: learning_rate (1.0), momentum (0.9).
# fedadam, fedyogi: learning_rate (0.01), beta1 (0.9), beta2 (0.99), tau (1e-3).
[server_optimizer]
name = "fedavg"
learning_rate = 1.0

[hyper_parameters]                # passed to every client's trainer: int, float, string, bool
ridge = 2.0

[[lanes]]                         # numbers beside the delta, clipped and noised with it; none
name = "train-loss"
scale = 0.001                     # what a lane of 1.0 takes of the clip norm
"""
