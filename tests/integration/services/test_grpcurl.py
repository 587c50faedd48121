"""The grpcurl section of docs/operator.md, run as it stands: what it says is printed is printed."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from boltz_protocol.errors import ApprovalPending
from tests.support.calls import answered, refused
from tests.support.clients import client_key, enrol_request, join_token
from tests.support.mesh import Mesh, serving
from tests.support.models import declare

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "operator.md"


@dataclass(frozen=True, slots=True)
class Step:
    """One command and the lines that should follow."""

    command: str
    expected: tuple[str, ...]


def blocks(language: str) -> list[str]:
    section = DOCUMENT.read_text().split("## Without our command: grpcurl")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def steps() -> list[Step]:
    found: list[Step] = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.rstrip("\n").split("\n")
            found.append(Step(command, tuple(lines)))
    return found


def pattern(lines: tuple[str, ...]) -> str:
    """`...` on a line of its own is any lines, elsewhere anything within the line."""
    parts = []
    for line in lines:
        if line == "...":
            parts.append(r"(?:.*\n)+?")
        else:
            parts.append(r"[^\n]*".join(re.escape(text) for text in line.split("...")) + r"\n")
    return "".join(parts)


def script() -> str:
    """Every command in one shell, as a reader would type them; a mark ends each output."""
    (definitions,) = blocks("sh")
    functions = [line for line in definitions.splitlines() if "()" in line]
    commands = [f"{step.command}\necho '=== {n}'" for n, step in enumerate(steps())]
    return "\n".join([*functions, *commands])


async def outputs(mesh: Mesh) -> list[str]:
    environment = os.environ | {
        "MESH": mesh.addresses.mesh,
        "OPERATOR": str(mesh.operator_folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    process = await asyncio.create_subprocess_exec(
        "bash",
        *("-c", script()),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    # grpcurl leaves blanks in empty objects.
    text = re.sub(r"[ \t]+$", "", out.decode(), flags=re.MULTILINE)
    return re.split(r"=== \d+\n", text)[:-1]


async def test_the_documents_transcript(database_url: str, tmp_path: Path) -> None:
    async with serving(tmp_path / "data", database_url) as mesh:
        await declare(mesh, "demo")
        join = await join_token(mesh, requires_approval=True)
        with refused(ApprovalPending):
            request = enrol_request(join.join_string, client_key(0))
            await answered(mesh.enrolment.registry.Enroll(request))
        printed = await outputs(mesh)
    assert len(printed) == len(steps()) >= 10
    for step, output in zip(steps(), printed, strict=True):
        lines = output.rstrip("\n")
        assert re.fullmatch(pattern(step.expected), f"{lines}\n" if lines else ""), (
            f"$ {step.command}\n{output}"
        )
