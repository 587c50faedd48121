"""The Aggregator service: the contract's messages to and from what does the work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from boltz_mesh.services.guard import Context, caller_of
from boltz_mesh.services.participation import Incoming, Participation
from boltz_mesh.services.plans import Plans
from boltz_mesh.services.privacy import PrivacyBudgets
from boltz_mesh.services.rounds import Rounds
from boltz_mesh.services.sealed_inbox import KeysAdvertised, SurvivorsSigned
from boltz_mesh.services.subscriptions import Push
from boltz_mesh.services.uploads import Progress, Uploads
from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages as m
from boltz_protocol import messages_sealed as ms
from boltz_protocol.chunk_wire import WireChunk
from boltz_protocol.errors import MalformedMessage, PermissionDenied
from boltz_protocol.ids import ClientId, parse_client_id, parse_model_id, parse_round_id
from boltz_protocol.names import Role
from boltz_protocol.v1 import aggregator_pb2 as pb
from boltz_protocol.v1 import aggregator_pb2_grpc


class AggregatorService(aggregator_pb2_grpc.AggregatorServicer):
    """One instance a server."""

    def __init__(
        self,
        *,
        mesh_id: str,
        participation: Participation,
        uploads: Uploads,
        plans: Plans,
        rounds: Rounds,
        budgets: PrivacyBudgets,
    ) -> None:
        self._mesh_id = mesh_id
        self._participation = participation
        self._uploads = uploads
        self._plans = plans
        self._rounds = rounds
        self._budgets = budgets

    def _client(self, context: Context) -> ClientId:
        return ClientId(caller_of(context, self._mesh_id).name)

    # --- streams of clients ---------------------------------------------------------------------

    async def Participate(
        self, request_iterator: AsyncIterator[pb.ParticipateRequest], context: Context
    ) -> AsyncIterator[pb.ParticipateResponse]:
        """See the contract."""

        async def incoming() -> AsyncIterator[Incoming]:
            async for request in request_iterator:
                match request.WhichOneof("message"):
                    case "check_in":
                        yield codec.statement_from_proto(request.check_in)
                    case "decline":
                        yield codec.decline_from_proto(request.decline)
                    case "key_advertisement":
                        yield KeysAdvertised(codec.statement_from_proto(request.key_advertisement))
                    case "nonce_reveal":
                        yield codec_sealed.nonce_reveal_from_proto(request.nonce_reveal)
                    case "shares_dealt":
                        yield codec_sealed.shares_dealt_from_proto(request.shares_dealt)
                    case "survivors_seen":
                        yield SurvivorsSigned(codec.statement_from_proto(request.survivors_seen))
                    case "shares_released":
                        yield codec_sealed.shares_released_from_proto(request.shares_released)
                    case _:
                        raise MalformedMessage("a ParticipateRequest without a message")

        serving = self._participation.serve(self._client(context), incoming())
        async with aclosing(serving) as answers:
            async for answer in answers:
                yield _response(answer)

    async def SubmitUpdate(
        self, request_iterator: AsyncIterator[pb.SubmitUpdateRequest], context: Context
    ) -> AsyncIterator[pb.SubmitUpdateResponse]:
        """See the contract."""
        # The guard hands over chunks in the usual form as they stand on the wire.
        requests: AsyncIterator[pb.SubmitUpdateRequest | WireChunk] = aiter(request_iterator)
        first = await anext(requests, None)
        if (
            first is None
            or isinstance(first, WireChunk)
            or first.WhichOneof("message") != "manifest"
        ):
            raise MalformedMessage("a SubmitUpdate stream starts with a manifest")

        async def chunks() -> AsyncIterator[WireChunk]:
            async for request in requests:
                if isinstance(request, WireChunk):
                    yield request
                elif request.WhichOneof("message") == "chunk":
                    yield WireChunk(request.chunk.offset, memoryview(request.chunk.data))
                else:
                    raise MalformedMessage("only chunks may follow the manifest")

        statement = codec.statement_from_proto(first.manifest)
        receiving = self._uploads.receive(self._client(context), statement, chunks())
        async with aclosing(receiving) as answers:
            async for answer in answers:
                if isinstance(answer, Progress):
                    progress = pb.UploadProgress(committed_bytes=answer.committed_bytes)
                    yield pb.SubmitUpdateResponse(progress=progress)
                else:
                    yield pb.SubmitUpdateResponse(receipt=codec.statement_to_proto(answer))

    # --- plans ----------------------------------------------------------------------------------

    async def ApplyPlan(self, request: pb.ApplyPlanRequest, context: Context) -> Any:
        """See the contract."""
        by = caller_of(context, self._mesh_id).name
        plan, changed = await self._plans.apply(request.plan_toml, by=by, dry_run=request.dry_run)
        return pb.ApplyPlanResponse(plan=plan, changed=changed)

    async def GetPlan(self, request: pb.GetPlanRequest, context: Context) -> Any:
        """See the contract."""
        return pb.GetPlanResponse(plan=await self._plans.get(parse_model_id(request.model_id)))

    # --- rounds ---------------------------------------------------------------------------------

    async def StartRound(self, request: pb.StartRoundRequest, context: Context) -> Any:
        """See the contract."""
        by = caller_of(context, self._mesh_id).name
        started = await self._rounds.start(parse_model_id(request.model_id), by=by)
        return pb.StartRoundResponse(round=started)

    async def AbortRound(self, request: pb.AbortRoundRequest, context: Context) -> Any:
        """See the contract."""
        by = caller_of(context, self._mesh_id).name
        round_id = parse_round_id(request.round_id)
        return pb.AbortRoundResponse(
            round=await self._rounds.abort(round_id, reason=request.reason, by=by)
        )

    async def GetRound(self, request: pb.GetRoundRequest, context: Context) -> Any:
        """See the contract."""
        round_id = parse_round_id(request.round_id)
        return pb.GetRoundResponse(
            round=await self._rounds.get(round_id),
            contributions=await self._rounds.contributions(round_id),
        )

    async def ListRounds(self, request: pb.ListRoundsRequest, context: Context) -> Any:
        """See the contract."""
        model_id = parse_model_id(request.model_id) if request.model_id else None
        found, token = await self._rounds.list(model_id, request.page)
        return pb.ListRoundsResponse(rounds=found, next_page_token=token)

    async def WatchRound(
        self, request: pb.WatchRoundRequest, context: Context
    ) -> AsyncIterator[pb.WatchRoundResponse]:
        """See the contract."""
        async with aclosing(self._rounds.watch(parse_round_id(request.round_id))) as states:
            async for state in states:
                yield pb.WatchRoundResponse(round=state)

    # --- privacy --------------------------------------------------------------------------------

    async def GetPrivacyBudget(self, request: pb.GetPrivacyBudgetRequest, context: Context) -> Any:
        """See the contract."""
        caller = caller_of(context, self._mesh_id)
        model_id = parse_model_id(request.model_id)
        client_id = parse_client_id(request.client_id) if request.client_id else None
        if caller.role is Role.CLIENT and client_id != caller.name:
            raise PermissionDenied("a client may ask for its own budget only", role=caller.role)
        if caller.role is Role.CLIENT and request.verify_chain:
            raise PermissionDenied("the whole ledger is checked for operators and auditors only")
        return await self._budgets.read(model_id, client_id, verify_chain=request.verify_chain)


def _response(answer: m.Welcome | Push) -> pb.ParticipateResponse:
    """What is pushed, as the contract says it."""
    match answer:
        case m.Welcome():
            return pb.ParticipateResponse(welcome=codec.welcome_to_proto(answer))
        case m.RoundOffer():
            return pb.ParticipateResponse(offer=codec.offer_to_proto(answer))
        case m.RoundOutcome():
            return pb.ParticipateResponse(outcome=codec.outcome_to_proto(answer))
        case ms.KeyRosterNotice():
            key_roster = codec_sealed.key_roster_notice_to_proto(answer)
            return pb.ParticipateResponse(key_roster=key_roster)
        case ms.PeersNotice():
            return pb.ParticipateResponse(peers=codec_sealed.peers_notice_to_proto(answer))
        case ms.SharesNotice():
            return pb.ParticipateResponse(shares=codec_sealed.shares_notice_to_proto(answer))
        case ms.SurvivorsNotice():
            survivors = codec_sealed.survivors_notice_to_proto(answer)
            return pb.ParticipateResponse(survivors=survivors)
        case ms.SignaturesNotice():
            signatures = codec_sealed.signatures_notice_to_proto(answer)
            return pb.ParticipateResponse(signatures=signatures)
