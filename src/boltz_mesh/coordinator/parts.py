"""What the coordinator is put together from; made once by the composition root."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from random import Random

from opentelemetry.trace import Tracer

from boltz_mesh.rounds.plan_policy import PrivacyPolicy
from boltz_mesh.services.attempts import Attempts
from boltz_mesh.services.clock import Clock
from boltz_mesh.services.keyring import KeyRing
from boltz_mesh.storage.blobs import BlobStore
from boltz_mesh.storage.listen import Listener
from boltz_mesh.storage.postgres import Database
from boltz_mesh.trust.contribution import ValidationSet
from boltz_protocol.ids import ModelId


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a round needs around it.

    Attributes:
        attempts: what handlers and the coordinator read of sealed rounds.
        holder: this replica's id, as in its `Listener`; shown beside the lease.
        random: draws rosters; `secrets.SystemRandom()` wherever it matters.
        heavy: threads that a fold or a publication takes one of, for as long as it lasts.
        chunks: threads that folds share for their chunks; not the same executor as `heavy`.
        policy: what the mesh demands of every round's privacy.
        validation: held-out data of the operator's, by model, where there is any.
    """

    database: Database
    listener: Listener
    keyring: KeyRing
    attempts: Attempts
    blobs: BlobStore
    clock: Clock
    tracer: Tracer
    random: Random
    heavy: Executor
    chunks: Executor
    holder: str
    policy: PrivacyPolicy
    validation: Mapping[ModelId, ValidationSet] = field(default_factory=dict, repr=False)
