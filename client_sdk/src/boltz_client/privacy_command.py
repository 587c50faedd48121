"""`boltz-client privacy`: what this device's own ledgers say, each in its own unit.

Both files are read where they lie, without the mesh and without the key store's lock, so that the
command answers while another process takes part.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boltz_client import ledger as client_level
from boltz_client.ledger import Ledger
from boltz_client.owner import DEFAULT_DELTA
from boltz_client.private_files import check_private
from boltz_client.record_ledger import (
    RECORD_CAVEAT,
    RECORD_RELATION,
    RECORD_UNIT,
    RecordEvent,
    RecordLedger,
    record_epsilon,
)
from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError


def add_privacy_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register the command.

    Args:
        commands: from `add_subparsers`.
        common: options of every command.
    """
    found = commands.add_parser(
        "privacy",
        parents=[common],
        help="privacy spent by this device's own ledgers: client-level, and record-level apart",
        description="What this device's own ledgers say, without asking the mesh. " + RECORD_CAVEAT,
    )
    found.add_argument(
        "--delta", type=float, default=DEFAULT_DELTA, help="of every figure (default: %(default)g)"
    )
    found.set_defaults(run=_privacy)


async def _privacy(options: argparse.Namespace) -> int:
    # Written so that a NaN fails.
    if not limits.MIN_DELTA <= options.delta < 1:
        raise ConfigurationError(
            f"delta is {options.delta}; at least {limits.MIN_DELTA:g} and below 1, such as 1e-6",
            setting="delta",
        )
    report = await asyncio.to_thread(privacy_report, options.store, options.delta)
    print(json.dumps(report) if options.json else _text(report), flush=True)
    return 0


def privacy_report(store: str | Path, delta: float) -> dict[str, Any]:
    """Both ledgers as the command's JSON; an epsilon without bound is null there.

    Args:
        store: folder of the key store.
        delta: of every figure.

    Raises: ConfigurationError where a ledger is damaged or open to others.
    """
    folder = Path(store).expanduser()
    check_private(folder)
    rounds = Ledger(folder)
    models = sorted({event.model_id for event in rounds.events()})
    trainings = RecordLedger(folder).events()
    tables = sorted({event.table for event in trainings})
    return {
        "client_level": {
            "unit": client_level.UNIT,
            "relation": client_level.RELATION,
            "delta": delta,
            "models": [
                {
                    "model": model,
                    "epsilon_spent": _figure(rounds.spent(model, delta)),
                    "rounds_charged": len(rounds.events(model)),
                }
                for model in models
            ],
        },
        "record_level": {
            "unit": RECORD_UNIT,
            "relation": RECORD_RELATION,
            "delta": delta,
            "caveat": RECORD_CAVEAT,
            "tables": [
                {
                    "table": table,
                    **_spent([event for event in trainings if event.table == table], delta),
                }
                for table in tables
            ],
            # What holds for a record that stands in several tables.
            "all_tables": _spent(trainings, delta),
        },
    }


def _spent(events: Sequence[RecordEvent], delta: float) -> dict[str, Any]:
    return {
        "record_level_epsilon_spent": _figure(record_epsilon(events, delta)),
        "trainings_charged": len(events),
        "steps_charged": sum(event.steps for event in events),
        "models": sorted({event.model_id for event in events}),
    }


def _figure(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _text(report: dict[str, Any]) -> str:
    client, record = report["client_level"], report["record_level"]
    lines = [f"client-level {_scope(client)}:"]
    lines += [
        f"  {entry['model']}: epsilon {_told(entry['epsilon_spent'])}, "
        f"{entry['rounds_charged']} rounds charged"
        for entry in client["models"]
    ] or ["  no round was charged"]
    lines.append(f"record-level {_scope(record)}, another unit:")
    lines += [_record_line(f"table {entry['table']}", entry) for entry in record["tables"]] or [
        "  no training with record-level privacy was charged"
    ]
    if len(record["tables"]) > 1:
        lines.append(_record_line("a record that stands in all of them", record["all_tables"]))
    return "\n".join([*lines, record["caveat"]])


def _scope(section: dict[str, Any]) -> str:
    return (
        f"(unit: {section['unit']}; relation: {section['relation']}; at delta {section['delta']:g})"
    )


def _record_line(subject: str, entry: dict[str, Any]) -> str:
    return (
        f"  {subject}: record-level epsilon {_told(entry['record_level_epsilon_spent'])}, "
        f"{entry['trainings_charged']} trainings of {entry['steps_charged']} steps in all, "
        f"for {', '.join(entry['models'])}"
    )


def _told(epsilon: float | None) -> str:
    """Three decimals, rounded up."""
    return "without bound" if epsilon is None else f"{math.ceil(epsilon * 1000) / 1000:.3f}"
