"""One client's side of one attempt of a sealed or grouped round, as a pure machine.

::

    FRESH --advertise--> ADVERTISED --take_key_roster--> ROSTERED --take_peers--> DEALT
      --take_shares--> READY --take_survivors--> SIGNED --take_signatures--> RELEASED
    any --refusal--> DEAD

`mask_streams` is called once in READY, for the one vector that this client uploads; a client that
did not get so far still signs and releases. The same notice again gives the same answer, since a
stream may break; another notice of a kind that was answered is a refusal.

Everything that the server says is held against what was signed before it (Bonawitz et al. 2017,
figure 4; Bell et al. 2020, algorithm 3). Whatever is amiss raises, and the session is dead from
then on: it answers nothing, holds no secret, and so this client is a dropout to the others. Of each
dealer one share leaves this machine, ever: which one follows from the one bitmap that was signed.

Secrets live in the state that needs them and go with it: private keys until shares are dealt, the
seed and the masks until `mask_streams`, others' shares until they are released. Python cannot
promise to wipe memory; references are dropped.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NoReturn, TypeVar, cast

from boltz_protocol import messages_sealed as ms
from boltz_protocol.errors import MeshError, RoundRefused
from boltz_protocol.messages import RosterEntry, RoundConfiguration
from boltz_protocol.secagg import client_states as states
from boltz_protocol.secagg import client_steps as steps
from boltz_protocol.secagg.client_steps import Member, Sign
from boltz_protocol.secagg.dealing import Randomness
from boltz_protocol.secagg.floors import Floors
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.secagg.peers import VerifyPeer
from boltz_protocol.statement import Statement

__all__ = ["Floors", "SecaggClient", "Sign", "VerifyPeer"]

_State = TypeVar("_State", bound=states.State)
_Reply = TypeVar("_Reply")


class SecaggClient:
    """See the head of this module. One thread at a time.

    Args:
        configuration: verified under the mesh's key; `secure_aggregation` is set.
        configuration_sha256: digest of its statement.
        entry: this client's own place in the roster, proved against the configuration.
        sign: signs with the registered key.
        floors: of the owner.
        randomness: another than the operating system's is for tests.
    """

    __slots__ = ("_answers", "_member", "_state")

    def __init__(
        self,
        *,
        configuration: RoundConfiguration,
        configuration_sha256: bytes,
        entry: RosterEntry,
        sign: Sign,
        floors: Floors,
        randomness: Randomness = secrets.token_bytes,
    ) -> None:
        assert configuration.secure_aggregation is not None, "a sealed or grouped round"
        self._member = Member(
            configuration=configuration,
            configuration_sha256=configuration_sha256,
            entry=entry,
            sign=sign,
            floors=floors,
            randomness=randomness,
        )
        self._state: states.State = states.Fresh()
        # Step -> what was asked and what was answered.
        self._answers: dict[str, tuple[object, object]] = {}

    def __repr__(self) -> str:
        return (
            f"SecaggClient(round_id={self._member.configuration.round_id!r}, "
            f"attempt={self._member.configuration.attempt}, index={self._member.entry.index}, "
            f"state={type(self._state).__name__})"
        )

    @property
    def is_dead(self) -> bool:
        """Whether something was refused: nothing is answered any more."""
        return isinstance(self._state, states.Dead)

    # --- the steps ------------------------------------------------------------------------------

    def advertise(self) -> Statement:
        """Fresh keys and the commitment to a nonce, as a signed KeyAdvertisement."""
        return self._move(
            "advertise", None, states.Fresh, lambda state: steps.advertise(self._member, state)
        )

    def take_key_roster(
        self, notice: ms.KeyRosterNotice, payload: ms.KeyRoster, digest: bytes
    ) -> ms.NonceReveal | None:
        """Check who is in, and that the weights are the committed ones.

        Args:
            payload: of `notice.key_roster`, verified under the mesh's key by the caller.
            digest: of that statement.

        Returns: what to send, where a graph or groups have to be drawn.

        Raises: RoundRefused, MalformedMessage.
        """
        return self._move(
            "take_key_roster",
            notice,
            states.Advertised,
            lambda state: steps.take_key_roster(self._member, state, notice, payload, digest),
        )

    def take_peers(self, notice: ms.PeersNotice, verify_peer: VerifyPeer) -> ms.SharesDealt:
        """Check the graph or the group and every neighbour, and deal the shares.

        Args:
            verify_peer: checks a neighbour's certificate chain and the signature of its
                KeyAdvertisement; returns the payload or raises.

        Raises: RoundRefused, MalformedMessage, InvalidPlan, whatever `verify_peer` raises.
        """
        return self._move(
            "take_peers",
            notice,
            states.Rostered,
            lambda state: steps.take_peers(self._member, state, notice, verify_peer),
        )

    def take_shares(self, notice: ms.SharesNotice) -> None:
        """Learn who the sharers among the neighbours are, and open what they dealt.

        A share that does not open is passed over: others hold shares of that dealer too.

        Raises: RoundRefused, MalformedMessage.
        """
        self._move(
            "take_shares",
            notice,
            states.Dealt,
            lambda state: steps.take_shares(self._member, state, notice),
        )

    def mask_streams(self) -> tuple[MaskStream, ...]:
        """The masks of this client's one vector. A second call is refused, and ends the session:
        two vectors under one mask give away their difference.

        Raises: RoundRefused.
        """
        self._check_alive()
        state = self._state
        if not isinstance(state, states.Ready) or state.streams is None:
            self._refuse("masks are given out once, after the shares and before the survivors")
        streams = state.streams
        self._state = state.masked()
        return streams

    def take_survivors(self, payload: ms.Survivors) -> Statement:
        """Check the survivors against the floors and sign them (SurvivorsSeen); one set, ever.

        Args:
            payload: of the mesh's statement, verified by the caller.

        Raises: RoundRefused, MalformedMessage.
        """
        return self._move(
            "take_survivors",
            payload,
            states.Ready,
            lambda state: steps.take_survivors(self._member, state, payload),
        )

    def take_signatures(
        self, notice: ms.SignaturesNotice, verify_peer_statement: VerifyPeer
    ) -> ms.SharesReleased:
        """Once enough neighbours signed the same survivors: one share for each dealer.

        Args:
            verify_peer_statement: checks the signature of a neighbour's SurvivorsSeen under the
                certificate of its entry; returns the payload or raises.

        Raises: RoundRefused, MalformedMessage, SignatureInvalid, whatever the check raises.
        """
        return self._move(
            "take_signatures",
            notice,
            states.Signed,
            lambda state: steps.take_signatures(self._member, state, notice, verify_peer_statement),
        )

    # --- how a step is taken --------------------------------------------------------------------

    def _move(
        self,
        step: str,
        question: object,
        needed: type[_State],
        act: Callable[[_State], tuple[states.State, _Reply]],
    ) -> _Reply:
        self._check_alive()
        if step in self._answers:
            asked, answer = self._answers[step]
            if asked != question:
                self._refuse(f"a second, different call of {step}")
            return cast(_Reply, answer)
        state = self._state
        if not isinstance(state, needed):
            self._refuse(f"{step} does not follow on {type(state).__name__}")
        try:
            after, reply = act(state)
        except BaseException as error:
            self._die(error.message if isinstance(error, MeshError) else type(error).__name__)
            raise
        self._state = after
        self._answers[step] = (question, reply)
        return reply

    def _check_alive(self) -> None:
        if isinstance(self._state, states.Dead):
            raise RoundRefused(f"this session has ended: {self._state.reason}")

    def _refuse(self, reason: str) -> NoReturn:
        self._die(reason)
        raise RoundRefused(reason)

    def _die(self, reason: str) -> None:
        self._state = states.Dead(reason)
        self._answers.clear()
