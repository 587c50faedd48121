"""Tables for people, JSON for programs, one sentence and one piece of advice for an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

from boltz_protocol.errors import (
    BudgetExceeded,
    ConfigurationError,
    MeshError,
    Unavailable,
)


class Exit(IntEnum):
    """Exit codes of `boltz-mesh`, as its help and the docs list them."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
    ABORTED = 5
    OVER_BUDGET = 6
    REFUTED = 7
    INTERRUPTED = 130


EXIT_CODES_HELP = (
    "Exit codes: 0 done; 1 internal error; 2 wrong arguments or settings; 3 refused by the mesh; "
    "4 mesh unreachable; 5 the round was aborted; 6 over the privacy budget; 7 the privacy audit "
    "refutes the ledger, or trust does not follow from its steps; 130 interrupted."
)


def exit_code(error: MeshError) -> Exit:
    """The exit code for an error."""
    match error:
        case Unavailable():
            return Exit.UNREACHABLE
        case ConfigurationError():
            return Exit.USAGE
        case BudgetExceeded():
            return Exit.OVER_BUDGET
        case _:
            return Exit.REFUSED


def print_error(error: MeshError) -> None:
    """What is wrong and what to do next, on standard error."""
    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), error.message))
    console.print(Text.assemble(("next:  ", "bold"), error.advice()))


def as_dict(message: Message) -> dict[str, Any]:
    """A message by the contract's own field names; bytes in base64, fields at zero shown."""
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


#: Columns of ids, which have so many characters.
_IDS: Final = frozenset({"client", "round"})
_ID_CHARS: Final = 32
#: Width of what goes into a file or a pipe, where nothing need be wrapped.
PIPED_WIDTH: Final = 240


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; columns whose name starts with `>` are right-aligned.

    Ids are never cut: other commands need them whole.
    """
    table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        whole = column in _IDS
        table.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=whole,
            min_width=_ID_CHARS if whole and rows else None,
        )
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    if rows:
        _console().print(table)
    else:
        _console().print(Text(f"{title}: none"))


def print_fields(title: str, fields: Sequence[tuple[str, object]]) -> None:
    """Name and value, a line each."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(name, Text(str(value)))
    _console().print(table)


def say(sentence: str) -> None:
    """One sentence on standard output."""
    Console(highlight=False, soft_wrap=True).print(Text(sentence))


def when(at_ms: int) -> str:
    """A moment for people, in UTC to the second; a dash for none."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}Z" if at_ms else "-"


def size(size_bytes: int) -> str:
    """A number of bytes for people, in powers of 1000."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def enum_name(name: str, prefix: str) -> str:
    """`CLIENT_STATUS_ACTIVE` as `active`."""
    return name.removeprefix(prefix).lower()
