"""What the pages show can be typed: commands parse, code compiles, anchors exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from boltz_client import cli as client_cli
from boltz_mesh.app.cli.output import EXIT_CODES_HELP, Exit
from boltz_mesh.app.cli.root import app
from boltz_mesh.rounds.plan import plan_from_toml
from tests.support.repository import ROOT, documents

PAGES = [page for page in documents() if "decisions" not in page.parts]
_FENCE = re.compile(r"^```(\w+)?[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"```.*?```", re.DOTALL)
#: What ends a command in a shell line: a pipe, a redirection, a comment, the next command.
_ENDS = frozenset({"|", "||", "&&", ">", "&", ";"})


def blocks(language: str) -> list[tuple[Path, str]]:
    return [
        (page, text)
        for page in PAGES
        for found, text in _FENCE.findall(page.read_text("utf-8"))
        if found == language
    ]


def commands(program: str) -> list[list[str]]:
    """The arguments of every call of `program` in the pages' shell blocks."""
    calls = []
    for _, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while program in words:
                words = words[words.index(program) + 1 :]
                end = next((i for i, word in enumerate(words) if word in _ENDS), len(words))
                calls.append(words[:end])
    return calls


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _CODE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_commands_of_the_server_parse() -> None:
    calls = commands("boltz-mesh")
    assert len(calls) > 25
    for arguments in calls:
        app.parse_args(arguments, exit_on_error=False, print_error=False)


def test_commands_of_the_client_parse() -> None:
    calls = commands("boltz-client")
    assert len(calls) >= 3
    for arguments in calls:
        client_cli._parser().parse_args(arguments)


def test_python_compiles() -> None:
    found = blocks("python")
    assert len(found) >= 5
    for page, text in found:
        compile(text, str(page), "exec")


def test_toml_parses() -> None:
    for page, text in blocks("toml"):
        assert tomllib.loads(text), page
        plan_from_toml(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_exist(page: Path) -> None:
    text = _CODE.sub("", page.read_text("utf-8"))
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        target = page.parent / link if link else page
        assert anchor in anchors(target), f"{page.name}: {link}#{anchor}"


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.name)
def test_no_page_names_a_machine(page: Path) -> None:
    assert not re.findall(r"(?<![\w.])/(?:work|root|home|tmp)/\S*", page.read_text("utf-8"))


def test_exit_codes_of_the_server() -> None:
    text = (ROOT / "docs" / "operator.md").read_text("utf-8")
    table = text.split("## Exit codes of `boltz-mesh`")[1].split("\n## ")[0]
    listed = dict(re.findall(r"^\| (\d+) \| (.+) \|$", table, re.MULTILINE))
    assert {int(code) for code in listed} == set(Exit)
    for code, meaning in listed.items():
        assert f"{code} {meaning}" in EXIT_CODES_HELP


def test_exit_codes_of_the_client() -> None:
    known = {
        client_cli.OK,
        client_cli.BROKEN,
        client_cli.USAGE,
        client_cli.REFUSED,
        client_cli.UNREACHABLE,
        client_cli.OWN_LIMITS,
    }
    for name in ("docs/client.md", "client_sdk/README.md"):
        text = (ROOT / name).read_text("utf-8").split("| exit code | meaning |")[1]
        table = text.split("\n\n")[0]
        assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == known
