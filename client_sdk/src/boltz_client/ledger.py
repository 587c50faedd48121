"""The client's own privacy ledger: what each round may have told about its data, by its own count.

One file in the key store's folder, `ledger.jsonl`, mode 0600: a line of JSON for each release that
an update of this client may have gone into. A round is charged before the first byte of its update
leaves (and once, however often the bytes are sent), and never given back: a client cannot know what
a server saw of a round that it then called aborted. So this figure is at or above the mesh's, which
charges releases; where it is below, the mesh's ledger names rounds that this client was not in.

Lines are appended and synced one by one. A last line without its end is from a power cut before the
charge was done, and so before anything was sent: it counts for nothing and is overwritten. Anything
else that does not read is refused, since a ledger that forgets is worse than none.

The key store's lock keeps other processes away; threads of this one take turns.
"""

from __future__ import annotations

import json
import math
import os
import threading
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from boltz_client.private_files import check_private, sync_folder
from boltz_protocol import gaussian_dp, ids, limits
from boltz_protocol import messages as m
from boltz_protocol.encoding import Encoding
from boltz_protocol.errors import ConfigurationError, MeshError, StateConflict
from boltz_protocol.ids import ModelId, RoundId
from boltz_protocol.noise_share import effective_noise_multiplier
from boltz_protocol.sealing import round_share_variance

LEDGER_NAME: Final = "ledger.jsonl"
#: The words of the mesh's ledger (`GetPrivacyBudget`), so that the two can be laid side by side.
UNIT: Final = "client"
RELATION: Final = "contribution-set-to-zero"
MECHANISMS: Final = frozenset({"discrete-gaussian", "distributed-discrete-gaussian", "none"})

_Key = tuple[RoundId, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEvent:
    """One release that this client's update may have gone into; a second attempt is another.

    Attributes:
        mechanism: of `MECHANISMS`.
        noise_multiplier: standard deviation of the noise on the sum over `sensitivity`, at the
            fewest survivors and with the tolerated colluders; 0 exactly where there was none.
        sensitivity: L2 bound of the update, in integer units.
        delta: as the round's configuration told it; 0 where it promised nothing.
        at_ms: Unix time, when it was charged.

    Raises: ConfigurationError for a value that no release has.
    """

    model_id: ModelId
    round_id: RoundId
    attempt: int
    mechanism: str
    noise_multiplier: float
    sensitivity: int
    relation: str
    unit: str
    delta: float
    at_ms: int

    def __post_init__(self) -> None:
        ids.parse_model_id(self.model_id)
        ids.parse_round_id(self.round_id)
        sound = (
            1 <= self.attempt <= limits.MAX_ATTEMPTS
            and self.mechanism in MECHANISMS
            and (self.relation, self.unit) == (RELATION, UNIT)
            and math.isfinite(self.noise_multiplier)
            and self.noise_multiplier >= 0
            and (self.noise_multiplier == 0) == (self.mechanism == "none")
            and self.sensitivity >= 1
            and 0 <= self.delta < 1
            and self.at_ms >= 0
        )
        if not sound:
            raise ConfigurationError("the values are of no release")

    @property
    def key(self) -> _Key:
        """What is charged once."""
        return self.round_id, self.attempt


_FIELDS: Final = {field.name: field.type for field in fields(LedgerEvent)}
_KINDS: Final[dict[str, type]] = {"int": int, "float": float}


def release_of(configuration: m.RoundConfiguration, encoding: Encoding, at_ms: int) -> LedgerEvent:
    """What a round may release about this client, by its configuration.

    Args:
        configuration: verified.
        encoding: of that configuration.
        at_ms: Unix time.

    Raises: InvalidPlan where noise cannot be shared (a client has refused such a round before).
    """
    noise_multiplier = configuration.noise_multiplier
    mechanism = "discrete-gaussian"
    if configuration.secure_aggregation is not None and noise_multiplier > 0:
        mechanism = "distributed-discrete-gaussian"
        variance = round_share_variance(configuration, encoding)
        noise_multiplier = effective_noise_multiplier(
            noise_multiplier,
            share_sigma=math.sqrt(variance),
            # Exact: so many shares, of the fewest survivors that do not collude, make the noise.
            contributors=int(encoding.sigma_squared / variance),
            coordinates=configuration.coordinates,
        )
    return LedgerEvent(
        model_id=configuration.model_id,
        round_id=configuration.round_id,
        attempt=configuration.attempt,
        mechanism=mechanism if noise_multiplier > 0 else "none",
        noise_multiplier=noise_multiplier,
        sensitivity=configuration.bound_l2,
        relation=RELATION,
        unit=UNIT,
        delta=configuration.delta if configuration.privacy == m.PRIVACY_CLIENT_DP else 0.0,
        at_ms=at_ms,
    )


class Ledger:
    """The ledger of one key store, which must be open. Methods block and may be called in threads.

    Args:
        folder: of the key store. Nothing is read before it is needed.
    """

    __slots__ = ("_events", "_lock", "_size_bytes", "path")

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER_NAME
        self._lock = threading.Lock()
        self._events: dict[_Key, LedgerEvent] | None = None
        # Of whole lines.
        self._size_bytes = 0

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r})"

    def events(self, model_id: ModelId | None = None) -> tuple[LedgerEvent, ...]:
        """All events in the order of their charges, of one model or of all.

        Raises: ConfigurationError where the file is damaged or open to others.
        """
        with self._lock:
            return tuple(
                event
                for event in self._loaded().values()
                if model_id is None or event.model_id == model_id
            )

    def has(self, round_id: RoundId, attempt: int) -> bool:
        """Whether an attempt is charged. Raises: as `events`."""
        with self._lock:
            return (round_id, attempt) in self._loaded()

    def spent(
        self, model_id: ModelId, delta: float, *, with_event: LedgerEvent | None = None
    ) -> float:
        """Epsilon of everything charged for a model, this client's contribution set to zero.

        Args:
            delta: in (0, 1).
            with_event: counted as well, unless it is charged already.

        Raises: as `events`.
        """
        events = {event.key: event for event in self.events(model_id)}
        if with_event is not None:
            events.setdefault(with_event.key, with_event)
        counts: dict[float, int] = {}
        for event in events.values():
            counts[event.noise_multiplier] = counts.get(event.noise_multiplier, 0) + 1
        # Sorted, so that the same releases give the same last digit.
        mu = gaussian_dp.composed_mu(sorted(counts.items()))
        largest = max((gaussian_dp.composed_mu([(z, 1)]) for z in counts), default=0.0)
        return gaussian_dp.epsilon_of_releases(mu, delta, len(events), largest)

    def charge(self, event: LedgerEvent) -> bool:
        """Write an event down for good; False when the attempt was charged before.

        Raises:
            StateConflict: it was charged with other figures: two configurations for one attempt.
            ConfigurationError: the file is damaged, full, or cannot be written.
        """
        with self._lock:
            known = self._loaded().get(event.key)
            if known is not None:
                if _without_time(known) != _without_time(event):
                    raise StateConflict(
                        f"round {event.round_id} attempt {event.attempt} was charged with other "
                        "figures: the mesh shows two configurations for it"
                    )
                return False
            self._append(event)
            self._loaded()[event.key] = event
            return True

    def _append(self, event: LedgerEvent) -> None:
        line = json.dumps(_plain(event), sort_keys=True, separators=(",", ":")).encode() + b"\n"
        if self._size_bytes + len(line) > limits.MAX_LEDGER_BYTES:
            raise ConfigurationError(
                f"{self.path} has reached {limits.MAX_LEDGER_BYTES} bytes; move the key store's "
                "client to a new enrolment"
            )
        try:
            created = not self.path.exists()
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                # What a power cut left of a line that was never charged.
                os.ftruncate(descriptor, self._size_bytes)
                written = os.pwrite(descriptor, line, self._size_bytes)
                if written != len(line):
                    raise OSError(f"{written} of {len(line)} bytes written")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if created:
                sync_folder(self.path.parent)
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be written: {error}") from error
        self._size_bytes += len(line)

    def _loaded(self) -> dict[_Key, LedgerEvent]:
        if self._events is None:
            content = self._read()
            whole = content[: content.rfind(b"\n") + 1]
            events: dict[_Key, LedgerEvent] = {}
            for number, line in enumerate(whole.split(b"\n")[:-1], 1):
                try:
                    event = _parsed(line)
                except (ValueError, RecursionError, MeshError) as error:
                    raise self._damaged(number, str(error)) from error
                if event.key in events:
                    raise self._damaged(number, "the attempt is charged twice")
                events[event.key] = event
            self._size_bytes = len(whole)
            self._events = events
        return self._events

    def _read(self) -> bytes:
        if not self.path.exists():
            return b""
        check_private(self.path)
        try:
            if self.path.stat().st_size > limits.MAX_LEDGER_BYTES:
                raise ConfigurationError(
                    f"{self.path} is larger than {limits.MAX_LEDGER_BYTES} bytes"
                )
            return self.path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be read: {error.strerror}") from error

    def _damaged(self, number: int, why: str) -> ConfigurationError:
        return ConfigurationError(
            f"line {number} of {self.path} is damaged ({why[:200]}). Nothing is sent while it is: "
            "restore the file from a backup; deleting it would forget what was spent"
        )


def _plain(event: LedgerEvent) -> dict[str, Any]:
    return {name: getattr(event, name) for name in _FIELDS}


def _without_time(event: LedgerEvent) -> dict[str, Any]:
    return {name: value for name, value in _plain(event).items() if name != "at_ms"}


def _parsed(line: bytes) -> LedgerEvent:
    """Raises: ValueError (bad JSON or UTF-8 included), MeshError."""
    content = json.loads(line)
    if not isinstance(content, dict) or content.keys() != _FIELDS.keys():
        raise ValueError("not the fields of an event")
    for name, kind in _FIELDS.items():
        wanted = _KINDS.get(str(kind), str)
        # JSON has one kind of number: 2.0 may have been written as 2 by other hands.
        value = content[name]
        good = isinstance(value, float | int if wanted is float else wanted)
        if not good or isinstance(value, bool):
            raise ValueError(f"{name} is {str(value)[:40]!r}")
    return LedgerEvent(**content)
