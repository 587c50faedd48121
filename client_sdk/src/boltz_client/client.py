"""A client of a mesh: pull models, take part in rounds, submit updates.

::

    async with MeshClient.open("store") as client:
        model = await client.pull_model("volatility")
        await client.participate(trainer, "volatility")

Many clients may live in one process: each has its own certificate and so its own connection,
which is made when it is first used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

from opentelemetry.trace import SpanKind
from tenacity import AsyncRetrying, retry_if_exception, stop_never

from boltz_client.backoff import Backoff, Clock, system_clock
from boltz_client.charges import Budget, Charges
from boltz_client.connection import answered, is_passing
from boltz_client.keystore import KeyStore
from boltz_client.ledger import Ledger
from boltz_client.link import MeshLink
from boltz_client.models import PulledModel
from boltz_client.notices import Notice, Summary
from boltz_client.offers import AcceptedRound, Self, check_base, check_offer
from boltz_client.owner import OwnerLimits
from boltz_client.peer_checks import PeerChecks, PeerMemory
from boltz_client.pulling import Puller
from boltz_client.seal import seal
from boltz_client.session import Participation
from boltz_client.spool import SealedUpdate, Spool, UpdateReader
from boltz_client.tracing import call_metadata, tracer
from boltz_client.trainer import Trainer, TrainResult, local_delta
from boltz_client.transfer import upload
from boltz_client.workspace import Workspace
from boltz_protocol import codec, limits
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    ChunkOutOfOrder,
    MalformedMessage,
    MeshError,
    RoundClosed,
    StateConflict,
)
from boltz_protocol.ids import ClientId, ModelId, SessionId, new_session_id, parse_model_id
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.statement import Statement
from boltz_protocol.v1 import (
    aggregator_pb2,
    aggregator_pb2_grpc,
    registry_pb2,
)

_log: Final = logging.getLogger(__name__)


class MeshClient:
    """One client of one mesh. Use it as an async context manager.

    Args:
        store: an enrolled key store; it stays open (and locked) while the client lives, and is
            closed with it.
        owner: limits that the owner of the data sets; see `OwnerLimits`.
        region: told at each check-in; may be empty.
        clock: for tests.
        memory: of peers that were verified; clients of one process may share one.

    Raises: StateConflict when the store is not enrolled.
    """

    def __init__(
        self,
        store: KeyStore,
        *,
        owner: OwnerLimits | None = None,
        region: str = "",
        clock: Clock = system_clock,
        memory: PeerMemory | None = None,
    ) -> None:
        m.check_region(region)
        if store.client_id is None:
            raise StateConflict(f"the key store {store.folder} is not enrolled yet")
        self.owner = owner if owner is not None else OwnerLimits()
        self.region = region
        self.session_id: SessionId = new_session_id()
        self.spool = Spool(store.folder / "spool")
        self._workspace = Workspace()
        self._client_id: ClientId = store.client_id
        self._store = store
        self._clock = clock
        self._link = MeshLink(store, clock, memory)
        self._puller = Puller(self._link, self.spool.folder, store.identity.mesh)
        self.ledger = Ledger(store.folder)
        self._charges = Charges(self.ledger, self.owner, self.server_time_ms)
        self._spool_ready = False
        self._participations: set[Participation] = set()
        self._resuming: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        folder: Path | str,
        *,
        owner: OwnerLimits | None = None,
        region: str = "",
        clock: Clock = system_clock,
        memory: PeerMemory | None = None,
    ) -> AsyncIterator[MeshClient]:
        """Open a key store and a client on it.

        Raises: ConfigurationError, KeyStoreLocked, StateConflict.
        """
        with await asyncio.to_thread(KeyStore.open, Path(folder)) as store:
            async with cls(store, owner=owner, region=region, clock=clock, memory=memory) as client:
                yield client

    async def __aenter__(self) -> MeshClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop taking part, close the connection and the key store."""
        await self.stop()
        if self._resuming is not None:
            self._resuming.cancel()
            await asyncio.gather(self._resuming, return_exceptions=True)
        await self._link.close()
        self._store.close()

    def __repr__(self) -> str:
        return f"MeshClient({self._client_id}, {self.mesh_id})"

    @property
    def client_id(self) -> ClientId:
        """This client's id."""
        return self._client_id

    @property
    def mesh_id(self) -> str:
        """The mesh's name."""
        return self._store.identity.mesh

    def server_time_ms(self) -> int:
        """Unix time by the server's clock, as its last welcome showed it."""
        return self._link.server_time_ms()

    # --- models ---------------------------------------------------------------------------------

    async def pull_model(self, model_id: str, version: int = 0) -> PulledModel:
        """Fetch a version and verify it: signature, digest, tensors, finite numbers.

        A pull that was cut off goes on where it broke off, also after a restart of the process.

        Args:
            model_id: which model.
            version: which version; 0 is the promoted one.

        Raises:
            NotFound: no such model or version.
            SignatureInvalid, UnknownKey, DigestMismatch, ShapeMismatch, NotFinite,
            MalformedMessage: it is not what the mesh signed.
            Unavailable: the mesh could not be reached, many times in a row.
        """
        await self._prepare_spool()
        return await self._puller.pull(parse_model_id(model_id), version)

    # --- rounds ---------------------------------------------------------------------------------

    async def participate(
        self,
        trainer: Trainer,
        model_id: str,
        *,
        rounds: int | None = None,
        quality_bucket: int = limits.MAX_QUALITY_BUCKET,
        notify: Callable[[Notice], None] | None = None,
    ) -> Summary:
        """Take part in a model's rounds for as long as this runs.

        Check in, train and submit when selected, decline what the checks or the owner's limits
        refuse, and come back after every loss of the connection. Ends after `stop()`, after
        `rounds` rounds, or with an error after which coming back would not help.

        Args:
            trainer: trains in a thread.
            rounds: leave after so many rounds that this client was selected for have ended.
            quality_bucket: declared data quality, 0 (worst) to 3 (best).
            notify: told of everything that happens; called on the event loop, must not block.

        Raises:
            ClientNotActive, Unauthenticated, PermissionDenied: the mesh shut this client out.
            Superseded: a newer run of the same client took over.
            NotFound: no such model.
            ReplayRefused: this machine's clock is off.
        """
        await self._prepare_spool()
        if self._resuming is None:
            self._resuming = asyncio.create_task(self._resume())
        participation = Participation(
            self,
            trainer,
            parse_model_id(model_id),
            rounds=rounds,
            quality_bucket=quality_bucket,
            notify=notify,
        )
        self._participations.add(participation)
        try:
            return await participation.run()
        finally:
            self._participations.discard(participation)

    async def stop(self) -> None:
        """End every `participate` of this client; they return in order."""
        for participation in list(self._participations):
            participation.stop()
        for participation in list(self._participations):
            await participation.stopped()

    async def _resume(self) -> None:
        """Send what an earlier run of this client sealed and got no receipt for.

        The mesh offers a round to the session that checked in for it only, so nobody will ask.
        """
        for sealed in await asyncio.to_thread(self.spool.find_all):
            manifest = sealed.manifest
            if manifest.client_id != self._client_id or manifest.session_id == self.session_id:
                continue
            try:
                await self.upload(sealed, self.server_time_ms() + limits.MAX_PHASE_MS)
            except MeshError as error:
                _log.info("round %s is over for its update: %s", manifest.round_id, error.message)
            await asyncio.to_thread(self.spool.discard, manifest.round_id, manifest.attempt)

    async def verified(self, statement: Statement, expected_type: str) -> bytes:
        """The payload of a statement of the mesh.

        Raises: UnknownKey, SignatureInvalid, MalformedMessage, LimitExceeded; Unavailable where
            the mesh's keys are not known and cannot be fetched.
        """
        return await self._link.verified(statement, expected_type)

    async def accept(self, offer: m.RoundOffer, model_id: ModelId) -> AcceptedRound:
        """Verify an offer and hold it against the owner's limits.

        Raises: as `offers.check_offer`; UnknownKey only after the mesh's keys were fetched anew;
            BudgetExceeded where the client's own ledger has no room for the round.
        """
        await self._link.verified(offer.configuration, m.ROUND_CONFIGURATION)
        accepted = check_offer(
            offer,
            me=Self(
                mesh_id=self.mesh_id,
                client_id=self._client_id,
                session_id=self.session_id,
                public_key=self._store.private_key.public_key(),
            ),
            model_id=model_id,
            keys=self._link.keys,
            owner=self.owner,
            now_ms=self.server_time_ms(),
        )
        await self._charges.check(accepted)
        return accepted

    async def seal_update(
        self,
        accepted: AcceptedRound,
        base: PulledModel,
        result: TrainResult,
        masks: Sequence[MaskStream] | None = None,
    ) -> SealedUpdate:
        """Encode, encrypt, spool and sign what training gave, and charge the own ledger for it.

        Its bytes are fixed from then on.

        Args:
            masks: of a sealed round, from its protocol (`sealed_round`); None in an open one.

        Raises:
            RoundRefused: `base` is not the round's base model.
            ShapeMismatch, NotFinite, TrainingFailed: the result does not fit the round.
            BudgetExceeded: the owner's budget has no room for it.
        """
        configuration = accepted.configuration
        check_base(configuration, base.manifest)

        def work() -> SealedUpdate:
            lanes = configuration.metric_lanes
            delta = local_delta(base.vector, base.manifest.tensors, lanes, result)
            sealed = seal(
                accepted,
                delta,
                private_key=self._store.private_key,
                spool=self.spool,
                workspace=self._workspace,
                masks=masks,
                now_ms=self.server_time_ms(),
            )
            self._charges.charge(accepted)
            return sealed

        name = "boltz.client.encode" if masks is None else "boltz.client.mask"
        with tracer().start_as_current_span(name) as span:
            span.set_attribute("boltz.coordinates", configuration.coordinates)
            span.set_attribute("boltz.masks", len(masks or ()))
            return await asyncio.to_thread(work)

    async def upload(self, sealed: SealedUpdate, deadline_ms: int) -> m.UpdateReceipt:
        """Send a sealed update until there is a receipt; goes on after cuts.

        Args:
            deadline_ms: Unix time by the server's clock after which there is no point.

        Raises:
            RoundClosed: the deadline came first, or the mesh closed the round.
            SignatureInvalid, MalformedMessage, UnknownKey: the receipt does not hold.
            RoundRefused: the update was never charged to the own ledger.
            MeshError: the mesh refused the update.
        """
        manifest = sealed.manifest
        await self._charges.require(manifest)
        left_s = (deadline_ms - self.server_time_ms()) / 1000
        with tracer().start_as_current_span("boltz.client.upload", kind=SpanKind.CLIENT) as span:
            span.set_attribute("boltz.bytes", manifest.size_bytes)
            try:
                with UpdateReader(sealed) as reader:
                    async with asyncio.timeout(max(0.0, left_s)):
                        async for attempt in AsyncRetrying(
                            retry=retry_if_exception(_resumable),
                            wait=Backoff(),
                            stop=stop_never,
                            reraise=True,
                        ):
                            with attempt:
                                method = self._link.stubs.submit
                                receipt = await upload(method, sealed, reader, call_metadata())
            except TimeoutError as error:
                raise RoundClosed("the deadline came before the receipt") from error
            return await self._checked_receipt(receipt, manifest)

    async def submit_update(
        self, accepted: AcceptedRound, base: PulledModel, result: TrainResult
    ) -> m.UpdateReceipt:
        """Seal and upload in one go. A second call for the same round sends the same bytes.

        Raises: as `seal_update` and `upload`; StateConflict for a sealed round, in which
            `participate` has to make the masks.
        """
        if accepted.configuration.mode is not m.RoundMode.OPEN:
            raise StateConflict("an update of a sealed round needs masks: use `participate`")
        await self._prepare_spool()
        configuration = accepted.configuration
        sealed = await asyncio.to_thread(
            self.spool.find, configuration.round_id, configuration.attempt
        )
        if sealed is None or sealed.manifest.session_id != accepted.entry.session_id:
            sealed = await self.seal_update(accepted, base, result)
        return await self.upload(sealed, configuration.deadline_ms)

    async def _checked_receipt(
        self, statement: Statement, manifest: m.UpdateManifest
    ) -> m.UpdateReceipt:
        payload = await self._link.verified(statement, m.UPDATE_RECEIPT)
        receipt = codec.parse_update_receipt(payload)
        if (receipt.mesh_id, receipt.round_id, receipt.attempt, receipt.client_id) != (
            self.mesh_id,
            manifest.round_id,
            manifest.attempt,
            self._client_id,
        ) or receipt.sha256 != manifest.sha256:
            raise MalformedMessage("the receipt is for another update")
        return receipt

    # --- beside rounds --------------------------------------------------------------------------

    async def privacy_budget(self, model_id: str) -> Budget:
        """What this client has spent on a model. Raises: NotFound, Unavailable."""
        request = aggregator_pb2.GetPrivacyBudgetRequest(
            model_id=parse_model_id(model_id), client_id=self._client_id
        )
        reply = await answered(
            self._link.stubs.aggregator.GetPrivacyBudget(
                request, timeout=limits.CALL_TIMEOUT_MS / 1000, metadata=call_metadata()
            )
        )
        return Budget(**{name: getattr(reply, name) for name in Budget.__slots__})

    async def status(self) -> str:
        """Where the mesh says this client stands, such as "ACTIVE". Raises: MeshError."""
        reply = await answered(
            self._link.stubs.registry.GetClient(
                registry_pb2.GetClientRequest(client_id=self._client_id),
                timeout=limits.CALL_TIMEOUT_MS / 1000,
                metadata=call_metadata(),
            )
        )
        name = registry_pb2.ClientStatus.Name(reply.client.status)
        return name.removeprefix("CLIENT_STATUS_")

    # --- for `session` --------------------------------------------------------------------------

    @property
    def aggregator(self) -> aggregator_pb2_grpc.AggregatorAsyncStub:
        """The stub, on this client's connection."""
        return self._link.stubs.aggregator

    @property
    def peers(self) -> PeerChecks:
        """Checks of the other clients in sealed rounds."""
        return self._link.peers

    @property
    def store(self) -> KeyStore:
        """The open key store."""
        return self._store

    def saw_server_time(self, server_time_ms: int) -> None:
        """Take in the server's clock."""
        self._link.saw_server_time(server_time_ms)

    async def _prepare_spool(self) -> None:
        if not self._spool_ready:
            await asyncio.to_thread(self.spool.prepare, self._clock.now_ms())
            self._spool_ready = True


def _resumable(error: BaseException) -> bool:
    # The call that was cut may still be alive at the server for a moment and hold the upload, or
    # have taken another chunk: asking again for the committed offset clears both up.
    return is_passing(error) or isinstance(error, ChunkOutOfOrder | StateConflict)
