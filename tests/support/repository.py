"""The repository as data, for the tests that keep its house rules."""

from __future__ import annotations

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
#: Where the importable packages of the two distributions live.
SERVER_SOURCES: Final = ROOT / "src"
CLIENT_SOURCES: Final = ROOT / "client_sdk" / "src"
GENERATED: Final = CLIENT_SOURCES / "boltz_protocol" / "v1"
PROTO: Final = ROOT / "proto"


@dataclass(frozen=True, slots=True)
class Module:
    """One Python file of ours: `name` is dotted for shipped code, a path for everything else."""

    name: str
    path: Path
    text: str

    @property
    def relative(self) -> str:
        """The path inside the repository, for messages and tables of exemptions."""
        return self.path.relative_to(ROOT).as_posix()

    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text, filename=str(self.path))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*.py")):
        if GENERATED not in path.parents or path.name == "__init__.py":
            yield path


def _module(path: Path, sources: Path | None) -> Module:
    if sources is None:
        name = path.relative_to(ROOT).as_posix()
    else:
        parts = path.relative_to(sources).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name=name, path=path, text=path.read_text("utf-8"))


@functools.cache
def shipped_modules() -> tuple[Module, ...]:
    """Every module of boltz_mesh, boltz_client and boltz_protocol, generated ones excepted."""
    return tuple(
        _module(path, sources)
        for sources in (CLIENT_SOURCES, SERVER_SOURCES)
        for path in _files(sources)
    )


@functools.cache
def other_modules() -> tuple[Module, ...]:
    """Tests, tools, examples and deployment scripts."""
    folders = ("tests", "tools", "deploy", "client_sdk/examples", "client_sdk/tests")
    return tuple(_module(path, None) for folder in folders for path in _files(ROOT / folder))


@dataclass(frozen=True, slots=True)
class Import:
    """One module that a file imports; `line` is where."""

    target: str
    line: int


def imports_of(module: Module) -> Iterator[Import]:
    """Absolute names of everything a module imports, those inside functions included.

    `from a import b` yields `a.b`: whether `b` is a module or a name, its owner is `a`.
    """
    is_package = module.path.name == "__init__.py"
    for node in ast.walk(module.tree()):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                owner = module.name.split(".")
                keep = len(owner) - node.level + (1 if is_package else 0)
                base = ".".join([*owner[:keep], *([base] if base else [])])
            yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in node.names)


@functools.cache
def project(distribution: str) -> dict[str, Any]:
    """The parsed pyproject.toml of `boltz-mesh` or `boltz-mesh-client`."""
    folder = {"boltz-mesh": ROOT, "boltz-mesh-client": ROOT / "client_sdk"}[distribution]
    return tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))


def requirements(distribution: str, extra: str | None = None) -> dict[str, str]:
    """Name -> specifier of a distribution's dependencies, or of one of its extras."""
    table = project(distribution)["project"]
    lines: list[str] = (
        table["dependencies"] if extra is None else table["optional-dependencies"][extra]
    )
    found = (re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(.*)", line) for line in lines)
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match is not None}


def documents() -> list[Path]:
    """Every Markdown file that a reader may open."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("client_sdk/*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(pages)
