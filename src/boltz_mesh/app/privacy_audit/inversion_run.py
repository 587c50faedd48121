"""The inversion on real rounds: the same attack on what each kind of round lets an attacker see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from boltz_mesh.app.privacy_audit.canaries import Float64Array
from boltz_mesh.app.privacy_audit.inversion import (
    FIELDS,
    invert,
    likeness,
    record_of,
    update_of,
)
from boltz_mesh.app.privacy_audit.options import DEFAULT_CANARIES, DEFAULT_EPSILON, AuditOptions
from boltz_mesh.app.privacy_audit.plans import Noise
from boltz_mesh.app.privacy_audit.report import Ledger
from boltz_mesh.app.privacy_audit.run import Say, on_laboratory, private_folder, run_interruptible
from boltz_mesh.app.privacy_audit.trial import Laboratory, LedgerFigure
from boltz_protocol.messages import TensorSpec
from boltz_protocol.model_file import Vector

#: Desks, the victim included.
CLIENTS: Final = DEFAULT_CANARIES
_TENSORS: Final = (TensorSpec("weights", (FIELDS,)), TensorSpec("bias", (1,)))


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attack.

    Attributes:
        seen: what the attacker sees, in words.
        cosine, relative_error: as `inversion.Likeness`.
        ledger: what the ledger says of the release; None where nothing is promised.
    """

    seen: str
    cosine: float
    relative_error: float
    ledger: Ledger | None = None


class InversionReport(msgspec.Struct, frozen=True, kw_only=True):
    """All attacks on one record.

    Attributes:
        fields: numbers in the record.
    """

    fields: int
    clients: int
    attempts: tuple[Attempt, ...]


def run_inversion(environment: Mapping[str, str], say: Say, *, keep: bool) -> InversionReport:
    """Attack one desk's record four times, three of them through sealed rounds of a new mesh.

    Raises: as `run.run_audit`.
    """
    with private_folder(keep, say) as folder:
        attempts = run_interruptible(
            on_laboratory(
                _attack,
                folder=folder,
                environment=environment,
                clients=CLIENTS,
                mode="sealed",
                tensors=_TENSORS,
                say=say,
            )
        )
    return InversionReport(fields=FIELDS, clients=CLIENTS, attempts=attempts)


async def _attack(laboratory: Laboratory) -> tuple[Attempt, ...]:
    updates = [update_of(record_of(desk)) for desk in range(CLIENTS)]
    victim = updates[0]
    silent = [victim, *[np.zeros_like(victim)] * (CLIENTS - 1)]
    noise = Noise(AuditOptions().noise_multiplier, DEFAULT_EPSILON)

    async def attempt(
        model: str, seen: str, deltas: Sequence[Vector], noise: Noise | None
    ) -> Attempt:
        released = await laboratory.run(f"audit-inversion-{model}", deltas, noise)
        return _attempt(seen, released.sum, released.ledger)

    return (
        _attempt(
            "the update itself, as the server holds it during an open round",
            victim.astype(np.float64),
        ),
        await attempt(
            "alone", "a sealed sum without noise; the other desks contribute nothing", silent, None
        ),
        await attempt("crowd", "a sealed sum without noise; all desks train", updates, None),
        await attempt(
            "noised", "a sealed sum with noise; the other desks contribute nothing", silent, noise
        ),
    )


def _attempt(seen: str, update: Float64Array, ledger: LedgerFigure | None = None) -> Attempt:
    found = likeness(invert(update), record_of(0).quantities)
    return Attempt(
        seen=seen,
        cosine=found.cosine,
        relative_error=found.relative_error,
        ledger=None
        if ledger is None
        else Ledger(
            epsilon=ledger.epsilon, delta=ledger.delta, unit=ledger.unit, relation=ledger.relation
        ),
    )


def to_json(report: InversionReport) -> bytes:
    """The report as one JSON document."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
