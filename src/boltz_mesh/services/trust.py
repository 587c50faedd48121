"""GetClientTrust and ReleaseClient: what trust comes from, and how an operator gives it back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from boltz_mesh.services.clock import Clock
from boltz_mesh.services.paging import decode_token, encode_token, page_size
from boltz_mesh.storage import clients, trust
from boltz_mesh.storage.postgres import Connection, Database
from boltz_mesh.storage.trust import Standing
from boltz_mesh.trust.replay import Step
from boltz_mesh.trust.reputation import Evidence, EvidenceKind
from boltz_protocol.errors import MalformedMessage, StateConflict
from boltz_protocol.ids import ClientId, ModelId
from boltz_protocol.v1 import common_pb2
from boltz_protocol.v1 import registry_pb2 as pb


@dataclass(frozen=True, slots=True)
class _Found:
    standings: dict[ModelId, Standing]
    rows: Sequence[Step]


class ClientTrusts:
    """One instance a server."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def read(
        self, client_id: ClientId, model_id: ModelId | None, page: common_pb2.Page
    ) -> pb.GetClientTrustResponse:
        """Where a client stands, and for one model a page of what led there.

        Raises: NotFound; MalformedMessage, LimitExceeded for the page.
        """
        size, after = page_size(page), _number(page)

        async def body(connection: Connection) -> _Found:
            await clients.get_client(connection, client_id)
            if model_id is not None:
                rows = await trust.list_evidence(
                    connection, model_id, client_id, after=after, limit=size
                )
                return _Found({model_id: await _standing(connection, model_id, client_id)}, rows)
            models = await trust.models_with_evidence(connection, client_id)
            return _Found(
                {model: await _standing(connection, model, client_id) for model in models}, ()
            )

        found = await self._database.read("read_trust", body)
        return pb.GetClientTrustResponse(
            trust=[_shown(model, standing) for model, standing in found.standings.items()],
            steps=[_step(row) for row in found.rows],
            next_page_token=encode_token(str(found.rows[-1].seq))
            if len(found.rows) == size
            else "",
        )

    async def release(
        self, client_id: ClientId, model_id: ModelId, *, by: str, reason: str
    ) -> pb.ClientTrust:
        """End a quarantine. Raises: NotFound; StateConflict where the client is in none."""

        async def body(connection: Connection) -> Standing:
            await clients.get_client(connection, client_id)
            await trust.lock(connection, model_id)
            standing = await _standing(connection, model_id, client_id)
            if standing.quarantined_until is None:
                raise StateConflict(
                    f"client {client_id} is in no quarantine for {model_id}", client_id=client_id
                )
            await trust.append_evidence(
                connection,
                model_id,
                client_id,
                Evidence(EvidenceKind.RELEASE, "released", inputs={"by": by, "because": reason}),
                round_id=None,
                attempt=None,
                # Of a round that is being aggregated there may be evidence already.
                ordinal=max(standing.ordinal, standing.last_ordinal),
                at_ms=self._clock(),
            )
            return await _standing(connection, model_id, client_id)

        return _shown(model_id, await self._database.run_tx("release_client", body))


async def _standing(connection: Connection, model_id: ModelId, client_id: ClientId) -> Standing:
    return (await trust.read_trust(connection, model_id, [client_id]))[client_id]


def _number(page: common_pb2.Page) -> int:
    token = decode_token(page)
    if not token:
        return 0
    if not (token.isdecimal() and len(token) < 19):
        raise MalformedMessage("this is not a page token", field="page.token")
    return int(token)


def _shown(model_id: ModelId, standing: Standing) -> pb.ClientTrust:
    return pb.ClientTrust(
        model_id=model_id,
        ordinal=standing.ordinal,
        positive_256=standing.state.positive_256,
        negative_256=standing.state.negative_256,
        score_256=standing.state.mean_256,
        trust_256=standing.trust_256,
        quarantined_until=standing.quarantined_until or 0,
        steps=standing.rows,
    )


def _step(row: Step) -> pb.TrustEvidence:
    return pb.TrustEvidence(
        seq=row.seq,
        ordinal=row.ordinal,
        round_id=row.round_id,
        attempt=row.attempt,
        kind=pb.TrustEvidenceKind.Value(f"TRUST_EVIDENCE_KIND_{row.kind.upper()}"),
        reason=row.reason,
        gain_256=row.gain_256,
        loss_256=row.loss_256,
        inputs_json=json.dumps(dict(row.inputs), allow_nan=False, sort_keys=True),
        positive_256=row.positive_256,
        negative_256=row.negative_256,
        quarantine_rounds=row.quarantine_rounds,
        trust_256=row.trust_256,
        at_ms=row.at_ms,
    )
