"""Write the generated parts of the pages in `docs/`, or check that they are up to date.

What the code knows about itself (settings of a plan, of the server, errors, who may call what) is
written into the pages between `<!-- generated: NAME -->` and `<!-- end of NAME -->`, so that a page
cannot fall behind. The words around those marks are left alone.

Run: python tools/make_docs.py [--check]
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from boltz_mesh.app.config import Config
from boltz_mesh.privacy.adaptive_clip import AdaptiveClipping
from boltz_mesh.privacy.budget import Budget
from boltz_mesh.rounds.plan import example_plan
from boltz_mesh.rounds.plan_types import (
    Cohort,
    Deadlines,
    GroupingPlan,
    Lane,
    OptimizerPlan,
    Plan,
    SecureAggregationPlan,
    TensorSpec,
)
from boltz_mesh.services.access import ACCESS
from boltz_protocol.errors import MeshError
from boltz_protocol.names import Role

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
#: Tables of a plan in the order of the page; "" is the top level.
_PLAN_TABLES: Final[tuple[tuple[str, type], ...]] = (
    ("", Plan),
    ("[[tensors]]", TensorSpec),
    ("[cohort]", Cohort),
    ("[budget]", Budget),
    ("[adaptive_clipping]", AdaptiveClipping),
    ("[deadlines]", Deadlines),
    ("[secure_aggregation]", SecureAggregationPlan),
    ("[grouping]", GroupingPlan),
    ("[server_optimizer]", OptimizerPlan),
    ("[[lanes]]", Lane),
)
_TABLE_FIELDS: Final = frozenset(
    {
        "tensors",
        "cohort",
        "budget",
        "adaptive_clipping",
        "deadlines",
        "secure_aggregation",
        "grouping",
        "server_optimizer",
        "lanes",
    }
)
#: What the types do not say themselves, mostly because the word says it.
_PLAN_MEANINGS: Final = {
    "rule": "how updates are combined",
    "hyper_parameters": "passed to every client's trainer as they are; at most 64",
    "[[tensors]].dtype": "how a number is stored",
    "[[lanes]].name": "name of the metric in the trainer's result",
    "[budget].epsilon": "most that may be spent on one unit",
    "[budget].delta": "delta of that epsilon; at most one over `cohort.max`",
    "[budget].unit": "one client, over the life of the model; or one client's data of the period "
    "from `start` to `end`",
    "[budget].start": "first day (UTC) on which rounds may start",
    "[budget].end": "day (UTC) from which they may not",
    "[server_optimizer].name": "which optimizer turns the aggregate into the next version",
}
_BUDGET_RANGES: Final = {
    "epsilon": "above 0",
    "delta": "1e-15 to 1",
    "unit": '`"client"`, `"client-period"`',
    "start": "a day such as 2026-10-01",
    "end": "a day after `start`",
}
_CONFIG_MEANINGS: Final = {
    "mesh.id": "name of the mesh, in every certificate: 1 to 63 of `a-z 0-9 . -`; never changes",
    "mesh.data_dir": "where the mesh keeps its files",
    "mesh.replica": "name of this server process",
    "listen.host": "address to listen on",
    "listen.port": "mutual-TLS port; 0 takes any free one",
    "listen.enroll_port": "TLS port for enrolment; 0 takes any free one",
    "listen.health_port": "plain gRPC health service for probes; off unless set",
    "listen.names": "names and addresses in the server's certificate; the first goes into "
    "join strings (comma-separated in the environment)",
    "database.url": "PostgreSQL; empty means an embedded one. `DATABASE_URL` sets it too",
    "authority.certificate": "PEM file of an outside authority that issues the certificates",
    "authority.key": "PEM file of its private key, not encrypted",
    "authority.chain": "PEM file with the rest of its chain, up to the root",
    "enrollment.always_requires_approval": "every client waits for `boltz-mesh clients approve`",
    "privacy.production": "refuse plans without noise",
    "privacy.client_epsilon": "most that one client may spend over all models, for ever; no such "
    "budget unless set",
    "privacy.client_delta": "delta of that epsilon; 1e-15 to 1e-4",
    "validation.folder": "folder of `MODEL.npz` files to measure contributions on; none unless set",
    "telemetry.otlp_endpoint": "OTLP gRPC endpoint for traces; none are sent unless set",
    "telemetry.otlp_insecure": "plain connection to that endpoint",
    "telemetry.service_name": "name of the service in traces",
    "telemetry.log_level": "`DEBUG`, `INFO`, `WARNING` or `ERROR`",
}
_ROLES: Final = (Role.CLIENT, Role.OPERATOR, Role.AUDITOR)


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plan_settings() -> str:
    """Every setting of `plan.toml`: a table for each of its tables."""
    parts = []
    for name, kind in _PLAN_TABLES:
        heading = f"### `{name}`" if name else "### Top level"
        body = table(["setting", "default", "range", "meaning"], _plan_rows(name, kind))
        parts.append(f"{heading}\n\n{body}")
    return "\n\n".join(parts)


def _plan_rows(name: str, kind: type) -> Iterator[Sequence[str]]:
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]
    required = set(schema.get("required", ()))
    for field, known in schema["properties"].items():
        if not name and field in _TABLE_FIELDS:
            continue
        setting = field.removesuffix("_ms") if kind is Deadlines else field
        meaning = _PLAN_MEANINGS.get(f"{name}.{setting}".lstrip("."), known.get("description"))
        assert meaning, f"{name} {setting} has no description"
        if kind is Deadlines:
            default, values = f'`"{_duration(known["default"])}"`', _duration_range(known)
        elif kind is OptimizerPlan and known.get("default") is None:
            default, values = "by optimizer", _values(known)
        elif kind is AdaptiveClipping and known.get("default") is None:
            default, values = f"`clip_norm` {'/' if field == 'min' else '*'} 1000", _values(known)
        else:
            default = "required" if field in required else _toml(known.get("default"))
            values = _BUDGET_RANGES[field] if kind is Budget else _values(known)
        yield f"`{setting}`", default, values, meaning


def _duration(milliseconds: int) -> str:
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def _duration_range(known: dict[str, Any]) -> str:
    return f"{_duration(known['minimum'])} to {_duration(known['maximum'])}"


def _toml(value: object) -> str:
    return "none" if value is None else f"`{msgspec.json.encode(value).decode()}`"


def _values(known: dict[str, Any]) -> str:
    """The range that a setting's JSON schema states, in words."""
    if known.get("anyOf"):
        # Something, or left out.
        return _values(known["anyOf"][0])
    if "enum" in known:
        return ", ".join(_toml(value) for value in known["enum"])
    if "minimum" not in known and "exclusiveMinimum" not in known:
        return _kind(known)
    above = "exclusiveMinimum" in known
    least = _figure(known["exclusiveMinimum" if above else "minimum"])
    if "exclusiveMaximum" in known:
        return f"{'above ' if above else ''}{least} to below {_figure(known['exclusiveMaximum'])}"
    if "maximum" not in known:
        return f"above {least}" if above else f"at least {least}"
    return f"{'above ' if above else ''}{least} to {_figure(known['maximum'])}"


def _figure(value: float) -> str:
    exponent = value.hex().partition("p")[2] if isinstance(value, float) and value else ""
    if exponent and value == 2.0 ** int(exponent) and abs(int(exponent)) > 10:
        return f"2^{int(exponent)}"
    return f"{value:g}"


def _kind(known: dict[str, Any]) -> str:
    match known.get("type"):
        case "string" if "maxLength" in known:
            return f"text of {known.get('minLength', 0)} to {known['maxLength']} characters"
        case "string":
            return "text"
        case "array" if "maxItems" in known:
            return f"list of {known.get('minItems', 0)} to {known['maxItems']}"
        case "array":
            return "list"
        case "object":
            return "numbers, texts, booleans by name"
        case _:
            return "number"


def server_settings() -> str:
    """Every setting of the server with its default and its name in the environment."""
    return table(["setting", "default", "environment", "meaning"], _config_rows())


def _config_rows() -> Iterator[Sequence[str]]:
    tree = msgspec.to_builtins(Config())
    for section, values in tree.items():
        for key, default in values.items():
            setting = f"{section}.{key}"
            variable = f"MESH_{section}__{key}".upper()
            yield f"`{setting}`", _toml(default), f"`{variable}`", _CONFIG_MEANINGS[setting]


def errors() -> str:
    """Every typed error: reason, gRPC code, meaning, next step."""
    rows = (
        (
            f"`{kind.reason}`",
            f"`{kind.status}`",
            " ".join((kind.__doc__ or "").split()),
            kind.next_step,
        )
        for kind in _kinds(MeshError)
    )
    return table(["reason", "gRPC code", "meaning", "what to do next"], rows)


def _kinds(root: type[MeshError]) -> Iterator[type[MeshError]]:
    for kind in root.__subclasses__():
        # Tests of other files define errors of their own.
        if kind.__module__ == MeshError.__module__:
            yield kind
            yield from _kinds(kind)


def access() -> str:
    """Which role may call which method."""
    return table(["method", *(str(role) for role in _ROLES)], _access_rows())


def _access_rows() -> Iterator[Sequence[str]]:
    last = ""
    for path, roles in ACCESS.items():
        _, service, method = path.split("/")
        if service != last:
            yield [f"**{service}**", *([""] * len(_ROLES))]
            last = service
        yield [f"`{method}`", *("yes" if role in roles else "" for role in _ROLES)]


def example() -> str:
    """The annotated example plan."""
    return f"```toml\n{example_plan()}```"


#: Name of a part -> the page that it stands in, and what writes it.
PARTS: Final[dict[str, tuple[str, Callable[[], str]]]] = {
    "plan settings": ("plan.md", plan_settings),
    "plan example": ("plan.md", example),
    "server settings": ("operator.md", server_settings),
    "access": ("operator.md", access),
    "errors": ("client.md", errors),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A page as it is and as it should be."""

    path: Path
    present: str
    wanted: str


def pages(folder: Path = DOCS) -> Iterator[Page]:
    """Every page that has generated parts. Raises: ValueError where a page lacks its marks."""
    for name in sorted({page for page, _ in PARTS.values()}):
        path = folder / name
        present = wanted = path.read_text("utf-8")
        for part, (page, write) in PARTS.items():
            if page == name:
                wanted = _replaced(wanted, part, write(), name)
        yield Page(path, present, wanted)


def _replaced(text: str, part: str, content: str, page: str) -> str:
    start, end = f"<!-- generated: {part} -->", f"<!-- end of {part} -->"
    found = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if len(found.findall(text)) != 1:
        raise ValueError(f"{page} needs {start} and {end}, once each")
    return found.sub(lambda _: f"{start}\n\n{content}\n\n{end}", text)


def main(arguments: Sequence[str] | None = None, folder: Path = DOCS) -> int:
    """Write the pages, or with `--check` fail where one is behind."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the docs.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if behind")
    options = parser.parse_args(arguments)
    behind = [page for page in pages(folder) if page.present != page.wanted]
    for page in behind:
        if options.check:
            print(f"{page.path.name} is behind the code: run tools/make_docs.py", file=sys.stderr)
        else:
            page.path.write_text(page.wanted, "utf-8")
            print(f"wrote {page.path.name}")
    return 1 if options.check and behind else 0


if __name__ == "__main__":
    sys.exit(main())
