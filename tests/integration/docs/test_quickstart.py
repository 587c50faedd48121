"""docs/quickstart.md, followed by a reader who does exactly what it says.

A block with `title="..."` is saved under that name; an `sh` block is run in a shell of its own, in
one folder; a `text` block is what the block before it prints. `...` in it stands for what differs
from run to run: within a line for any text, alone on a line for any lines.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.support.repository import ROOT

PAGE = ROOT / "docs" / "quickstart.md"
_FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LIMIT_S = 60


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    title: str
    text: str


def blocks() -> list[Block]:
    return [Block(*found) for found in _FENCE.findall(PAGE.read_text("utf-8"))]


def pattern(text: str) -> re.Pattern[str]:
    """What a `text` block allows; spaces at the ends of lines do not count."""
    parts = []
    for line in text.strip("\n").split("\n"):
        if line == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            parts.append(r"[^\n]*".join(re.escape(piece) for piece in line.split("...")) + r"\n")
    return re.compile("".join(parts))


class Reader:
    """One folder, and every process that was started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[str]] = []
        self._environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MESH_", "BOLTZ_")) and key != "DATABASE_URL"
        } | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # The page uses the usual ports; several tests may run on one machine.
            "MESH_LISTEN__PORT": "0",
            "MESH_LISTEN__ENROLL_PORT": "0",
            "COLUMNS": "80",
        }

    def start(self, commands: str, output: IO[str] | int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", "-euc", commands],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        self._processes.append(process)
        return process

    def run(self, commands: str) -> str:
        """Run to the end and return what was printed; it must succeed."""
        log = self.folder / "output"
        with log.open("w") as output:
            code = self.start(commands, output).wait(_LIMIT_S)
        text = log.read_text()
        assert code == 0, f"exit code {code} of\n{commands}\n{text}"
        return text

    def serve(self, commands: str) -> str:
        """Start a server and return what it printed up to `ready`."""
        process = self.start(commands, subprocess.PIPE)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "ready\n":
                return "".join(lines)
        raise AssertionError("the server ended:\n" + "".join(lines))

    def close(self) -> None:
        """End everything; the server, which was started first, last."""
        for process in reversed(self._processes):
            self._signal(process, signal.SIGTERM)
            if process.stdout is not None:
                process.stdout.read()
                process.stdout.close()
            process.wait(_LIMIT_S)
            self._signal(process, signal.SIGKILL)

    def _signal(self, process: subprocess.Popen[str], number: signal.Signals) -> None:
        # What a block left in the background is in its group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.close()


def test_every_command_of_the_quickstart_works(reader: Reader) -> None:
    printed = ""
    for block in blocks():
        match block:
            case Block(title=title, text=text) if title:
                (reader.folder / title).write_text(text, "utf-8")
            case Block(language="sh", text=text):
                serves = text.startswith("boltz-mesh up")
                printed = reader.serve(text) if serves else reader.run(text)
            case Block(language="text", text=text):
                shown = re.sub(r" +$", "", printed, flags=re.MULTILINE)
                assert pattern(text).match(shown), f"the page says\n{text}\nprinted was\n{shown}"
            case _:
                pytest.fail(f"a block that nobody looks at: {block.text}")


def test_the_page_has_blocks_of_every_kind() -> None:
    found = blocks()
    assert {block.language for block in found} == {"sh", "text", "toml", "python"}
    assert sum(block.language == "sh" for block in found) >= 8
