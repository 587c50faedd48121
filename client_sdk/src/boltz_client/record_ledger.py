"""The record-level ledger of a device: what its DP-SGD trainings may have told about single rows.

It is apart from the ledger of rounds (`ledger.jsonl`) since its unit is another: there one client's
whole contribution, here one record of one of the device's own tables, added or removed. No figure
of one says anything about the other, and every figure of this one goes with `RECORD_CAVEAT`.

One file in the key store's folder, `record_ledger.jsonl`, mode 0600: a line of JSON for each
training, written and synced before the first row is looked at, and never taken back, whatever
becomes of the training or of its round. Lines hold events; epsilon is computed from them. A table
is spent across all models that are trained on it.

Every charge holds a lock on the file, reads it anew, checks the budget and appends, so that threads
and processes cannot overdraw it together; it may be read at any time. A last line without its end
is from a power cut before the training began and counts for nothing; anything else that does not
read is refused, since a ledger that forgets is worse than none.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from boltz_client.private_files import check_private, sync_folder
from boltz_client.record_rdp import (
    SampledGaussian,
    epsilon_of_steps,
    least_noise_within,
    most_steps_within,
)
from boltz_protocol import ids, limits
from boltz_protocol.errors import BudgetExceeded, ConfigurationError, MeshError
from boltz_protocol.ids import ModelId, RoundId

RECORD_LEDGER_NAME: Final = "record_ledger.jsonl"
RECORD_UNIT: Final = "record"
RECORD_RELATION: Final = "add-or-remove-one-record"
RECORD_MECHANISM: Final = "poisson-sampled-discrete-gaussian"
#: Goes with every record-level figure.
RECORD_CAVEAT: Final = (
    "Record-level: it is about one row of the table, not about a client, a desk or a day. One "
    "trading day touches many overlapping rows (features look back, labels look ahead), and all of "
    "them together are protected far less than one."
)
#: About fifty thousand trainings at 330 bytes each; they are read anew for each charge.
MAX_RECORD_LEDGER_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordEvent:
    """One training with DP-SGD on one table.

    Attributes:
        table: the owner's name for the rows; tables that share rows must share the name.
        model_id, round_id, attempt: what it was trained for.
        mechanism: `RECORD_MECHANISM`.
        noise_multiplier: standard deviation of the noise over `sensitivity`.
        sampling_rate: chance of each record in each step, drawn in secret from a cryptographic
            source.
        steps: that the training may take.
        sensitivity: L2 bound of one record's gradient.
        unit, relation: `RECORD_UNIT` and `RECORD_RELATION`.
        delta: at which the table's budget was held when it was charged.
        at_ms: Unix time, when it was charged.

    Raises: ConfigurationError for a value that no training has; it names the value.
    """

    table: str
    model_id: ModelId
    round_id: RoundId
    attempt: int
    mechanism: str = RECORD_MECHANISM
    noise_multiplier: float
    sampling_rate: float
    steps: int
    sensitivity: float
    unit: str = RECORD_UNIT
    relation: str = RECORD_RELATION
    delta: float
    at_ms: int

    def __post_init__(self) -> None:
        ids.parse_model_id(self.model_id)
        ids.parse_round_id(self.round_id)
        check_table(self.table)
        _ = self.run  # its own checks
        # Each written so that a NaN fails.
        for name, good in (
            ("attempt", 1 <= self.attempt <= limits.MAX_ATTEMPTS),
            ("mechanism", self.mechanism == RECORD_MECHANISM),
            ("sensitivity", limits.MIN_CLIP_NORM <= self.sensitivity <= limits.MAX_CLIP_NORM),
            ("unit", self.unit == RECORD_UNIT),
            ("relation", self.relation == RECORD_RELATION),
            ("delta", limits.MIN_DELTA <= self.delta < 1),
            ("at_ms", self.at_ms >= 0),
        ):
            if not good:
                raise ConfigurationError(f"{name} is {str(getattr(self, name))[:60]!r}")

    @property
    def run(self) -> SampledGaussian:
        """What it costs."""
        return SampledGaussian(self.noise_multiplier, self.sampling_rate, self.steps)


_FIELDS: Final = {field.name: field.type for field in fields(RecordEvent)}
_KINDS: Final[dict[str, type | tuple[type, ...]]] = {"int": int, "float": (int, float)}


def check_table(name: str) -> None:
    """Check an owner's name for a table. Raises: ConfigurationError."""
    if not (0 < len(name) <= limits.MAX_NAME_CHARS and name.isprintable()):
        raise ConfigurationError(
            f"table is {name[:60]!r}; it needs 1 to {limits.MAX_NAME_CHARS} printable characters, "
            "such as 'orders-2025'",
            setting="table",
        )


def record_epsilon(events: Sequence[RecordEvent], delta: float) -> float:
    """Record-level epsilon of these trainings at `delta` in (0, 1), one record added or removed."""
    return epsilon_of_steps((event.run for event in events), delta)


class RecordLedger:
    """The record-level ledger in a key store's folder. Methods block and may be called in threads.

    Args:
        folder: of the key store, or any folder of mode 0700. Nothing is read before it is needed.
    """

    __slots__ = ("path",)

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder).expanduser() / RECORD_LEDGER_NAME

    def __repr__(self) -> str:
        return f"RecordLedger({str(self.path)!r})"

    def events(self, table: str | None = None) -> tuple[RecordEvent, ...]:
        """All trainings in the order of their charges, on one table or on all.

        Raises: ConfigurationError where the file is damaged or open to others.
        """
        check_private(self.path.parent)
        if not self.path.exists():
            return ()
        check_private(self.path)
        try:
            with self.path.open("rb") as file:
                events, _ = self._read(file.fileno())
        except OSError as error:
            raise self._unusable(error) from error
        return _of_table(events, table)

    def spent(self, table: str, delta: float) -> float:
        """Record-level epsilon of all that was charged to a table; `RECORD_CAVEAT` goes with it.

        Args:
            delta: in (0, 1).

        Raises: as `events`.
        """
        return record_epsilon(self.events(table), delta)

    def charge(self, event: RecordEvent, budget: float) -> float:
        """Write a training down for good, if its table stays within a budget.

        Args:
            budget: most record-level epsilon of all trainings on the table, at `event.delta`.

        Returns: the table's record-level epsilon with this training, at `event.delta`.

        Raises:
            BudgetExceeded: it would not; the message says what would fit. Nothing is written.
            ConfigurationError: the file is damaged, full, open to others or cannot be written.
        """
        check_private(self.path.parent)
        try:
            created = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                check_private(self.path)
                # Closing the descriptor gives it back, as does the end of the process.
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                events, size = self._read(descriptor)
                epsilon = _within_budget(_of_table(events, event.table), event, budget)
                self._append(descriptor, size, event)
            finally:
                os.close(descriptor)
            if created:
                sync_folder(self.path.parent)
        except OSError as error:
            raise self._unusable(error) from error
        return epsilon

    def _read(self, descriptor: int) -> tuple[list[RecordEvent], int]:
        """The events and the size of their lines in bytes."""
        content = b""
        while part := os.pread(
            descriptor, MAX_RECORD_LEDGER_BYTES + 1 - len(content), len(content)
        ):
            content += part
        if len(content) > MAX_RECORD_LEDGER_BYTES:
            raise ConfigurationError(
                f"{self.path} is larger than {MAX_RECORD_LEDGER_BYTES} bytes; nothing more is "
                "trained from this key store with record-level privacy"
            )
        whole = content[: content.rfind(b"\n") + 1]
        events = []
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                events.append(_parsed(line))
            except (ValueError, RecursionError, MeshError) as error:
                raise ConfigurationError(
                    f"line {number} of {self.path} is damaged ({str(error)[:200]}). Nothing is "
                    "trained while it is: restore the file from a backup; deleting it would "
                    "forget what was spent"
                ) from error
        return events, len(whole)

    def _append(self, descriptor: int, size: int, event: RecordEvent) -> None:
        content = {name: getattr(event, name) for name in _FIELDS}
        line = json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        if size + len(line) > MAX_RECORD_LEDGER_BYTES:
            raise ConfigurationError(
                f"{self.path} has reached {MAX_RECORD_LEDGER_BYTES} bytes; nothing more is trained "
                "from this key store with record-level privacy"
            )
        # What a power cut left of a line that was never charged.
        os.ftruncate(descriptor, size)
        written = os.pwrite(descriptor, line, size)
        if written != len(line):
            raise OSError(f"{written} of {len(line)} bytes written")
        os.fsync(descriptor)

    def _unusable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(f"{self.path} cannot be used: {error.strerror or error}")


def _of_table(events: Sequence[RecordEvent], table: str | None) -> tuple[RecordEvent, ...]:
    return tuple(event for event in events if table is None or event.table == table)


def _within_budget(spent: Sequence[RecordEvent], event: RecordEvent, budget: float) -> float:
    runs, delta = [earlier.run for earlier in spent], event.delta
    epsilon = epsilon_of_steps([*runs, event.run], delta)
    # Written so that a NaN refuses.
    if epsilon <= budget:
        return epsilon
    steps = most_steps_within(runs, event.run, delta, budget)
    noise = least_noise_within(runs, event.run, delta, budget)
    ways = []
    if steps:
        ways.append(f"{steps} steps instead of {event.steps}")
    if noise is not None:
        ways.append(f"a noise multiplier of {noise:g} instead of {event.noise_multiplier:g}")
    raise BudgetExceeded(
        f"after this training the table {event.table!r} would stand at a record-level epsilon of "
        f"{epsilon:.4g} (unit: {RECORD_UNIT}; relation: {RECORD_RELATION}; at delta {delta:g}); "
        f"its record-level budget is {budget:g}, of which {epsilon_of_steps(runs, delta):.4g} is "
        f"spent. What would fit: {' or '.join(ways) or 'nothing more on this table'}",
        limit="record_epsilon_budget",
    )


def _parsed(line: bytes) -> RecordEvent:
    """Raises: ValueError (bad JSON or UTF-8 included), MeshError."""
    content: Any = json.loads(line)
    if not isinstance(content, dict) or content.keys() != _FIELDS.keys():
        raise ValueError("not the fields of a training")
    for name, kind in _FIELDS.items():
        value = content[name]
        # JSON has one kind of number: 1.0 may have been written as 1 by other hands.
        if not isinstance(value, _KINDS.get(str(kind), str)) or isinstance(value, bool):
            raise ValueError(f"{name} is {str(value)[:40]!r}")
    return RecordEvent(**content)
