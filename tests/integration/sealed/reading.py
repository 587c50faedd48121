"""From a transcript to a view: everything parsed, and decrypted with the server's own keys.

What came over the network counts whether the server took it or refused it; what is in the tables
counts in every version that a row ever had. Both say mostly the same, and are merged.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_der_private_key
from google.protobuf.message import DecodeError

from boltz_mesh.services.attempts import released_context
from boltz_mesh.services.files import aggregate_context
from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.context import BlobContext
from boltz_protocol.envelope import ChunkLayout, Opener, key_commitment, unwrap_as_recipient
from boltz_protocol.errors import DecryptionFailed
from boltz_protocol.ids import ClientId, RoundId, SessionId, parse_key_id
from boltz_protocol.key_wrap import KeyEncryptionKey, unwrap_key, unwrap_secret
from boltz_protocol.limits import MODEL_CHUNK_BYTES
from boltz_protocol.sealing import update_context, update_layout
from boltz_protocol.secagg.attempt import Attempt
from boltz_protocol.secagg.bitmap import indexes
from boltz_protocol.statement import Statement, digest
from boltz_protocol.v1 import aggregator_pb2 as pb
from tests.integration.sealed.loose import loose, loose_in_value
from tests.integration.sealed.transcript import PARTICIPATE, SUBMIT_UPDATE, Call, Row, Transcript
from tests.integration.sealed.view import Deal, Facts, Key, Upload, View, unpacked


@dataclass(slots=True)
class _Gathered:
    """What was said about one attempt, by whom; duplicates fall together."""

    configuration: Statement | None = None
    roster: dict[int, bytes] = field(default_factory=dict)
    advertisements: dict[bytes, Statement] = field(default_factory=dict)
    key_roster: Statement | None = None
    nonces: dict[str, bytes] = field(default_factory=dict)
    dealt: dict[bytes, m.SharesDealt] = field(default_factory=dict)
    shown: dict[str, set[int]] = field(default_factory=dict)
    #: Holder and share; a dictionary for its order.
    released: dict[tuple[str, m.ReleasedShare], None] = field(default_factory=dict)
    #: Wrapped content key -> manifest, and ciphertext by offset.
    manifests: dict[bytes, m.UpdateManifest] = field(default_factory=dict)
    pieces: defaultdict[bytes, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    aggregate: npt.NDArray[np.int32] | None = None


class _Keys:
    """The server's keys, as far as the transcript gives them."""

    def __init__(self, transcript: Transcript) -> None:
        self.kek: KeyEncryptionKey | None = None
        self.rsa: dict[str, RSAPrivateKey] = {}
        if transcript.kek_file:
            document = json.loads(transcript.kek_file)
            self.kek = KeyEncryptionKey(
                parse_key_id(document["key_id"]), bytes.fromhex(document["material"])
            )

    def unwrap(self, wrapped: bytes, context: BlobContext) -> bytes | None:
        try:
            return None if self.kek is None else unwrap_secret(wrapped, self.kek, context)
        except DecryptionFailed:
            return None

    def take(self, row: Row, mesh_id: str) -> None:
        """A row of `server_keys`."""
        wrapped = row.values["wrapped_private"]
        if wrapped is None or row.values["kind"] != "encryption":
            return
        key_id = row.values["key_id"]
        der = self.unwrap(wrapped, BlobContext(mesh_id, "server-key", (key_id,)))
        if der is not None:
            key = load_der_private_key(der, password=None)
            assert isinstance(key, RSAPrivateKey)
            self.rsa[key_id] = key


def read(transcript: Transcript, mesh_id: str) -> View:
    """Everything that a transcript says about sealed attempts whose key roster was signed."""
    reader = _Reader(transcript, mesh_id)
    for call in transcript.calls:
        if call.method == PARTICIPATE:
            reader.participate(call)
        elif call.method == SUBMIT_UPDATE:
            reader.submit(call)
    for row in transcript.rows:
        reader.row(row)
    return reader.view()


class _Reader:
    def __init__(self, transcript: Transcript, mesh_id: str) -> None:
        self._mesh_id = mesh_id
        self._blobs = transcript.blobs
        self._gathered: defaultdict[Key, _Gathered] = defaultdict(_Gathered)
        self._loose: set[bytes] = set()
        self._keys = _Keys(transcript)
        for row in transcript.rows:
            if row.table == "server_keys":
                self._keys.take(row, mesh_id)

    # --- the network ----------------------------------------------------------------------------

    def participate(self, call: Call) -> None:
        """One control stream. Whose it is, its first message says."""
        requests = [pb.ParticipateRequest.FromString(data) for data in call.received]
        responses = [pb.ParticipateResponse.FromString(data) for data in call.sent]
        for message in (*requests, *responses):
            self._loose.update(loose(message))
        if not requests:
            return
        client = codec.parse_check_in(requests[0].check_in.payload).client_id
        for request in requests:
            match request.WhichOneof("message"):
                case "key_advertisement":
                    self._advertised(codec.statement_from_proto(request.key_advertisement))
                case "nonce_reveal":
                    said = request.nonce_reveal
                    self._gathered[said.round_id, said.attempt].nonces[client] = said.nonce
                case "shares_dealt":
                    self._dealt(request.shares_dealt)
                case "shares_released":
                    self._released(client, request.shares_released)
        for response in responses:
            match response.WhichOneof("message"):
                case "offer":
                    self._configured(codec.statement_from_proto(response.offer.configuration))
                    self._entered(response.offer.configuration, response.offer.roster_entry)
                case "key_roster":
                    self._rostered(codec.statement_from_proto(response.key_roster.key_roster))
                case "shares":
                    key = response.shares.round_id, response.shares.attempt
                    told = self._gathered[key].shown.setdefault(client, set())
                    told.update(share.dealer for share in response.shares.shares)

    def submit(self, call: Call) -> None:
        """One upload, or a part of one."""
        wrapped, pieces = b"", {}
        for data in call.received:
            try:
                request = pb.SubmitUpdateRequest.FromString(data)
            except DecodeError:
                continue
            if request.WhichOneof("message") == "manifest":
                wrapped = self._announced(codec.statement_from_proto(request.manifest))
            else:
                pieces[request.chunk.offset] = request.chunk.data
        for gathered in self._gathered.values():
            if wrapped in gathered.manifests:
                gathered.pieces[wrapped].update(pieces)

    # --- the tables -----------------------------------------------------------------------------

    def row(self, row: Row) -> None:
        """One version of one row."""
        values = row.values
        for value in values.values():
            self._loose.update(loose_in_value(value))
        match row.table:
            case "federated_aggregations":
                if values["config_statement"] is not None:
                    self._configured(codec.parse_statement(values["config_statement"]))
                self._aggregated(values)
            case "round_roster":
                key = values["round_id"], values["attempt"]
                self._gathered[key].roster[values["position"]] = values["entry"]
            case "round_statements" if values["kind"] == "key-roster":
                self._rostered(codec.parse_statement(values["statement"]))
            case "round_messages" if values["payload"] is not None:
                self._message(values)
            case "federated_updates":
                wrapped = self._announced(codec.parse_statement(values["manifest"]))
                blob = self._blobs.get(values["blob_digest"] or b"", b"")
                key = values["round_id"], values["attempt"]
                self._gathered[key].pieces[wrapped].update(self._cut(key, blob))

    def _message(self, values: Any) -> None:
        client, payload = values["client_id"], values["payload"]
        match values["kind"]:
            case "key-advertisement":
                self._advertised(codec.parse_statement(payload))
            case "nonce":
                self._gathered[values["round_id"], values["attempt"]].nonces[client] = payload
            case "dealt-shares":
                self._dealt(pb.SharesDealt.FromString(payload))
            case "released-shares":
                where = _Where(values["round_id"], values["attempt"], client)
                # The context asks for three fields of the row.
                context = released_context(self._mesh_id, where)  # type: ignore[arg-type]
                content = self._keys.unwrap(payload, context)
                if content is not None:
                    self._released(client, pb.SharesReleased.FromString(content))

    # --- one kind of thing each -----------------------------------------------------------------

    def _configured(self, statement: Statement) -> None:
        configuration = codec.parse_round_configuration(statement.payload)
        key = configuration.round_id, configuration.attempt
        self._gathered[key].configuration = statement

    def _entered(self, configuration: Any, entry: bytes) -> None:
        said = codec.parse_round_configuration(configuration.payload)
        position = codec.parse_roster_entry(entry).index
        self._gathered[said.round_id, said.attempt].roster[position] = entry

    def _advertised(self, statement: Statement) -> None:
        said = codec_sealed.parse_key_advertisement(statement.payload)
        gathered = self._gathered[said.round_id, said.attempt]
        gathered.advertisements[digest(statement)] = statement

    def _rostered(self, statement: Statement) -> None:
        said = codec_sealed.parse_key_roster(statement.payload)
        self._gathered[said.round_id, said.attempt].key_roster = statement

    def _dealt(self, message: pb.SharesDealt) -> None:
        said = codec_sealed.shares_dealt_from_proto(message)
        signed = codec_sealed.parse_dealt_shares(said.dealt.payload)
        self._gathered[signed.round_id, signed.attempt].dealt[digest(said.dealt)] = said

    def _released(self, client: str, message: pb.SharesReleased) -> None:
        self._loose.update(loose(message))
        gathered = self._gathered[message.round_id, message.attempt]
        # Share by share: a message that is refused as a whole says what it says.
        for share in message.shares:
            said = m.ReleasedShare(share.dealer, m.ShareKind(share.kind), share.share, share.salt)
            gathered.released[client, said] = None

    def _announced(self, statement: Statement) -> bytes:
        said = codec.parse_update_manifest(statement.payload)
        self._gathered[said.round_id, said.attempt].manifests[said.wrapped_content_key] = said
        return said.wrapped_content_key

    def _cut(self, key: Key, blob: bytes) -> dict[int, bytes]:
        """A stored update as the pieces in which it came."""
        statement = self._gathered[key].configuration
        if statement is None:
            return {}
        layout = update_layout(codec.parse_round_configuration(statement.payload))
        starts = [layout.cipher_offset(index) for index in range(layout.count)]
        pieces = {
            start: blob[start : start + layout.cipher_bytes(index)]
            for index, start in enumerate(starts)
        }
        return {start: piece for start, piece in pieces.items() if piece}

    def _aggregated(self, values: Any) -> None:
        blob = self._blobs.get(values["aggregate_blob_digest"] or b"")
        key = values["round_id"], values["attempt"]
        statement = self._gathered[key].configuration
        if blob is None or statement is None or self._keys.kek is None:
            return
        coordinates = codec.parse_round_configuration(statement.payload).coordinates
        context = aggregate_context(self._mesh_id, RoundId(key[0]), key[1])
        content_key = unwrap_key(values["aggregate_wrapped_key"], self._keys.kek, context)
        layout = ChunkLayout(4 * coordinates, MODEL_CHUNK_BYTES)
        opener = Opener(content_key, context, layout, key_commitment(content_key, context))
        plain = b"".join(_opened(opener, index, blob) for index in range(layout.count))
        self._gathered[key].aggregate = np.frombuffer(plain, "<i4").astype(np.int32)

    # --- together -------------------------------------------------------------------------------

    def view(self) -> View:
        """All attempts that got as far as a graph."""
        attempts = {}
        for key, gathered in self._gathered.items():
            facts = self._facts(gathered)
            if facts is not None:
                attempts[key] = facts
        return View(attempts, frozenset(self._loose))

    def _facts(self, gathered: _Gathered) -> Facts | None:
        if gathered.configuration is None or gathered.key_roster is None:
            return None
        configuration = codec.parse_round_configuration(gathered.configuration.payload)
        key_roster = codec_sealed.parse_key_roster(gathered.key_roster.payload)
        members = indexes(key_roster.members, configuration.roster_size)
        positions = {
            codec.parse_roster_entry(raw).client_id: position
            for position, raw in gathered.roster.items()
        }
        attempt = Attempt.build(
            configuration=configuration,
            configuration_sha256=digest(gathered.configuration),
            roster=[gathered.roster[index] for index in range(configuration.roster_size)],
            advertisements={
                index: gathered.advertisements[sha256].payload
                for index, sha256 in zip(members, key_roster.advertisement_sha256s, strict=True)
            },
            key_roster=gathered.key_roster,
            nonces={positions[ClientId(name)]: each for name, each in gathered.nonces.items()},
        )
        deals = tuple(_deal(said, positions) for said in gathered.dealt.values())
        everybody = frozenset(deal.dealer for deal in deals)
        return Facts(
            attempt=attempt,
            deals=deals,
            shown={
                position: frozenset(gathered.shown.get(name, everybody))
                for name, position in positions.items()
            },
            released=tuple((positions[ClientId(name)], share) for name, share in gathered.released),
            uploads=tuple(self._uploads(gathered, attempt, positions)),
            aggregate=gathered.aggregate,
        )

    def _uploads(
        self, gathered: _Gathered, attempt: Attempt, positions: dict[ClientId, int]
    ) -> Iterator[Upload]:
        configuration = attempt.configuration
        layout = update_layout(configuration)
        for wrapped, manifest in gathered.manifests.items():
            recipient = self._keys.rsa.get(manifest.encryption_key_id)
            if recipient is None:
                continue
            context = update_context(
                configuration,
                attempt.configuration_sha256,
                client_id=manifest.client_id,
                session_id=SessionId(manifest.session_id),
                recipient_key_id=manifest.encryption_key_id,
            )
            content_key = unwrap_as_recipient(wrapped, recipient)
            opener = Opener(content_key, context, layout, manifest.key_commitment)
            plain = []
            for index in range(layout.count):
                piece = gathered.pieces[wrapped].get(layout.cipher_offset(index))
                if piece is None:
                    break  # what lies behind a gap is left out
                plain.append(_opened_piece(opener, index, piece))
            if plain:
                yield Upload(positions[manifest.client_id], unpacked(plain))


@dataclass(frozen=True, slots=True)
class _Where:
    round_id: str
    attempt: int
    client_id: str


def _deal(said: m.SharesDealt, positions: dict[ClientId, int]) -> Deal:
    signed = codec_sealed.parse_dealt_shares(said.dealt.payload)
    sealed = dict(zip(signed.holders, said.sealed_shares, strict=True))
    return Deal(positions[signed.client_id], signed, sealed)


def _opened(opener: Opener, index: int, blob: bytes) -> bytes:
    start = opener.layout.cipher_offset(index)
    return _opened_piece(opener, index, blob[start : start + opener.layout.cipher_bytes(index)])


def _opened_piece(opener: Opener, index: int, cipher: bytes) -> bytes:
    plain = bytearray(opener.layout.plain_bytes(index))
    opener.open_into(index, cipher, plain)
    return bytes(plain)
