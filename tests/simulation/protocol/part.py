"""A client's part in one attempt: a real `SecaggClient`, notices in, answers out, watched.

Does without threads and tasks what `boltz_client.sealed_round` does: a notice that comes again is
answered with the same, one out of its turn is passed over, and a refusal ends it all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from boltz_protocol import codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.errors import MeshError, RoundRefused
from boltz_protocol.masked_update import masked_update
from boltz_protocol.sealing import round_encoding
from boltz_protocol.secagg.bitmap import indexes
from boltz_protocol.secagg.client import SecaggClient
from boltz_protocol.secagg.client_states import Dealt, Ready, Rostered, Signed, State
from boltz_protocol.secagg.client_steps import Member
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.statement import MESH_ALGORITHMS, Statement, digest, verify
from boltz_protocol.update import EncodedDelta
from tests.simulation.protocol.eye import Eye, Int32Array, Masked
from tests.simulation.protocol.wire import Seen
from tests.support.secagg import cheap_verify

Notice = m.KeyRosterNotice | m.PeersNotice | m.SharesNotice | m.SurvivorsNotice | m.SignaturesNotice
Answer = m.NonceReveal | m.SharesDealt | Seen | m.SharesReleased | None
NOTICES: Final = (
    m.KeyRosterNotice,
    m.PeersNotice,
    m.SharesNotice,
    m.SurvivorsNotice,
    m.SignaturesNotice,
)


def verified(statement: Statement, expected_type: str, key: Ed25519PublicKey) -> bytes:
    """The payload of a statement of the mesh. Raises: SignatureInvalid."""
    return verify(
        statement, expected_type=expected_type, public_key=key, allowed_algorithms=MESH_ALGORITHMS
    )


@dataclass(frozen=True, slots=True)
class _Done:
    asked: Notice
    answer: Answer


class Part:
    """See the head of this module. `eye` is None where nobody is to be judged by it.

    Attributes:
        rostered, dealt, held: the last states with keys and shares in them, as an adversary sees
            them where the client is corrupt.
        masked: its one vector, once there is one.
    """

    def __init__(
        self, secagg: SecaggClient, mesh_key: Ed25519PublicKey, eye: Eye | None = None
    ) -> None:
        self.secagg: SecaggClient | None = secagg
        self.member: Member = secagg._member
        #: What `advertise` gave.
        self.advertisement: Statement | None = None
        self.rostered: Rostered | None = None
        self.dealt: Dealt | None = None
        self.held: Ready | None = None
        self.masked: Masked | None = None
        self.survivors: frozenset[int] | None = None
        self.uploading = False
        self._mesh_key = mesh_key
        self._eye = eye
        self._done: dict[type, _Done] = {}

    @property
    def index(self) -> int:
        return self.member.entry.index

    @property
    def is_sharer(self) -> bool:
        return m.SharesNotice in self._done

    @property
    def is_left_out(self) -> bool:
        return self.survivors is not None and self.index not in self.survivors

    @property
    def is_ready(self) -> bool:
        """Whether the masks can be had."""
        return self.is_sharer and self.survivors is None and self.secagg is not None

    def wipe(self) -> None:
        self.secagg = self.advertisement = None
        self._done.clear()

    def advertise(self) -> Statement:
        assert self.secagg is not None
        self.advertisement = self.secagg.advertise()
        return self.advertisement

    def advertisement_again(self) -> Statement | None:
        return None if self._done else self.advertisement

    def mask(self, values: Int32Array) -> bytes:
        """This client's one vector. Raises: RoundRefused."""
        if self.secagg is None:
            raise RoundRefused("this client has left the round")
        streams: tuple[MaskStream, ...] = self.secagg.mask_streams()
        encoded = EncodedDelta(
            values=values, lanes=0, encoding=round_encoding(self.member.configuration)
        )
        vector = b"".join(bytes(chunk) for chunk in masked_update(encoded, streams, None))
        session = self.member.entry.session_id
        self.masked = Masked(self.index, session, streams, vector, np.copy(values))
        if self._eye is not None:
            self._eye.saw_masked(self.masked)
        return vector

    def take(self, notice: Notice) -> Answer:
        """Check a notice and answer it. Raises: MeshError, and then the secrets are gone."""
        kind = type(notice)
        done = self._done.get(kind)
        if done is not None and (done.asked == notice or kind is m.SignaturesNotice):
            return done.answer
        if self.secagg is None or (done is None and kind is not NOTICES[len(self._done)]):
            return None  # over, or out of its turn
        try:
            answer = self._taken(self.secagg, notice)
        except MeshError:
            self.wipe()
            raise
        self._done[kind] = _Done(notice, answer)
        self._look(self.secagg._state)
        if kind is m.SignaturesNotice:
            # What may leave this machine is in the answer.
            self.secagg = None
        return answer

    def _taken(self, secagg: SecaggClient, notice: Notice) -> Answer:
        match notice:
            case m.KeyRosterNotice():
                payload = verified(notice.key_roster, m.KEY_ROSTER, self._mesh_key)
                roster = codec_sealed.parse_key_roster(payload)
                return secagg.take_key_roster(notice, roster, digest(notice.key_roster))
            case m.PeersNotice():
                shares = secagg.take_peers(notice, cheap_verify)
                if self._eye is not None:
                    assert self.rostered is not None
                    self._eye.saw_graph(self.member, self.rostered.roster, notice)
                return shares
            case m.SharesNotice():
                secagg.take_shares(notice)
                return None
            case m.SurvivorsNotice():
                return self._take_survivors(secagg, notice)
            case m.SignaturesNotice():
                before = secagg._state
                answer = secagg.take_signatures(notice, cheap_verify)
                if self._eye is not None:
                    assert isinstance(before, Signed)
                    self._eye.saw_released(self.member, before, notice, answer)
                return answer

    def _take_survivors(self, secagg: SecaggClient, notice: m.SurvivorsNotice) -> Seen:
        payload = codec_sealed.parse_survivors(
            verified(notice.survivors, m.SURVIVORS, self._mesh_key)
        )
        survivors = frozenset(indexes(payload.survivors, self.member.configuration.roster_size))
        if self.index in survivors and not self.uploading:
            raise RoundRefused("this client is counted, and has uploaded nothing")
        statement = secagg.take_survivors(payload)
        self.survivors = survivors
        if self._eye is not None:
            seen = codec_sealed.parse_survivors_seen(statement.payload)
            self._eye.saw_signed(self.member, seen)
        return Seen(statement)

    def _look(self, state: State) -> None:
        match state:
            case Rostered():
                self.rostered = state
            case Dealt():
                self.dealt = state
            case Ready():
                self.held = state
