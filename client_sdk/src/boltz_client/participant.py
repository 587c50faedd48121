"""The client's side of rounds as a pure machine: `step(state, event) -> (state, effects)`.

::

    link:   OFFLINE --StreamOpened--> CHECKING_IN --Welcomed--> ONLINE
               ^------------------ StreamLost -------------------'
            any --StopRequested--> STOPPED

    work:   none --Offered--> EXAMINING --Accepted--> TRAINING --Sealed--> UPLOADING --Receipted-->
            WAITING --Ended--> none
            TRAINING, UPLOADING --Late--> WAITING
            EXAMINING, TRAINING, UPLOADING --Failed--> none

EXAMINING: the offer's signature, roster proof and the owner's limits are checked. TRAINING: the
model is pulled, the owner's trainer runs, the update is encoded, encrypted and spooled. UPLOADING:
the spooled bytes are sent, from wherever the server's committed offset is. WAITING: the receipt is
here, or it is too late for one; the round goes on without this client, or, in a sealed round, with
its help only.

The steps of a sealed round beside its one upload (`sealed_round`) are no stages: they go on while
the client trains, uploads and waits. What is refused in one of them is a Failed like any other, and
ends the work; a client that waits has nothing left to end, and stays silent.

Work and link are independent: a lost stream interrupts no training and no upload (an upload has a
call of its own and resumes by itself). The server offers a round again after a reconnection, so an
offer is acted on once only: while it is being worked on, or after its receipt, a repetition is
passed over; after a decline, the decline is repeated, since the first may have been lost. An offer
of another round means that the server has left the one in work; that work is abandoned.

Nothing here verifies, waits or sends: the driver (`session`) runs the effects and tells what came
of them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

from boltz_protocol import limits
from boltz_protocol.ids import RoundId

#: Why a client that stops declines the round it is training for.
CLIENT_LEFT: Final = "CLIENT_LEFT"


@dataclass(frozen=True, slots=True)
class RoundKey:
    """Which attempt of which round."""

    round_id: RoundId
    attempt: int


class Link(enum.Enum):
    """Where the control stream stands."""

    OFFLINE = "offline"
    CHECKING_IN = "checking in"
    ONLINE = "online"
    STOPPED = "stopped"


class Stage(enum.Enum):
    """How far the work on one round has come."""

    EXAMINING = "examining"
    TRAINING = "training"
    UPLOADING = "uploading"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Work:
    """The round in work; one at a time for each model."""

    key: RoundKey
    stage: Stage


@dataclass(frozen=True, slots=True)
class Participant:
    """All that the machine knows.

    Attributes:
        finished: rounds that need nothing more, newest last, at most MAX_REMEMBERED_ROUNDS.
        declined: rounds that were declined and why, newest last, as many at most.
    """

    link: Link = Link.OFFLINE
    work: Work | None = None
    finished: tuple[RoundKey, ...] = ()
    declined: tuple[tuple[RoundKey, str], ...] = ()


# --- events -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A control stream is being opened."""


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The server recorded the check-in."""


@dataclass(frozen=True, slots=True)
class Offered:
    """The server offers a round; nothing of it is verified."""

    key: RoundKey


@dataclass(frozen=True, slots=True)
class Accepted:
    """The offer passed every check. `sealed`: its update is spooled already."""

    key: RoundKey
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class Sealed:
    """The update is spooled: its bytes are fixed for good."""

    key: RoundKey


@dataclass(frozen=True, slots=True)
class Receipted:
    """The server's signed receipt is here and verified."""

    key: RoundKey


@dataclass(frozen=True, slots=True)
class Late:
    """Collecting is over and this client is not in it, but in a sealed round it still helps."""

    key: RoundKey


@dataclass(frozen=True, slots=True)
class Failed:
    """The round came to nothing, by its work or beside it; `reason` is machine-readable."""

    key: RoundKey
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The server says that the round is over."""

    key: RoundKey


@dataclass(frozen=True, slots=True)
class StreamLost:
    """The control stream ended in a way after which it is opened again."""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The owner wants out, or the mesh shut this client out."""


Event = (
    StreamOpened
    | Welcomed
    | Offered
    | Accepted
    | Sealed
    | Receipted
    | Late
    | Failed
    | Ended
    | StreamLost
    | StopRequested
)

# --- effects ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendCheckIn:
    """Sign a check-in and send it."""


@dataclass(frozen=True, slots=True)
class Examine:
    """Verify the offer, then tell Accepted or Failed."""

    key: RoundKey


@dataclass(frozen=True, slots=True)
class Train:
    """Pull, train, seal, then tell Sealed or Failed."""

    key: RoundKey


@dataclass(frozen=True, slots=True)
class Upload:
    """Send the spooled bytes, then tell Receipted or Failed."""

    key: RoundKey


@dataclass(frozen=True, slots=True)
class SendDecline:
    """Tell the server that this client sits the round out."""

    key: RoundKey
    reason: str


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop whatever runs for the round; tell nothing about it any more."""

    key: RoundKey


@dataclass(frozen=True, slots=True)
class Forget:
    """The round needs nothing more: its spool and its trace may go."""

    key: RoundKey


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Open the control stream again, after a wait."""


@dataclass(frozen=True, slots=True)
class Close:
    """End the control stream for good."""


Effect = SendCheckIn | Examine | Train | Upload | SendDecline | Abandon | Forget | Reconnect | Close
Step = tuple[Participant, tuple[Effect, ...]]


def step(state: Participant, event: Event) -> Step:
    """The next state and what is to be done. A move that cannot happen asserts."""
    if state.link is Link.STOPPED:
        # Work that ends after the stop has nobody left to tell.
        return state, ()
    match event:
        case StreamOpened():
            assert state.link is Link.OFFLINE, "one stream at a time"
            return replace(state, link=Link.CHECKING_IN), (SendCheckIn(),)
        case Welcomed():
            assert state.link is not Link.OFFLINE, "a welcome without a stream"
            return replace(state, link=Link.ONLINE), ()
        case Offered(key):
            return _offered(state, key)
        case Accepted() | Sealed() | Receipted():
            return _advanced(state, event)
        case Late(key):
            return _late(state, key)
        case Failed(key, reason):
            return _failed(state, key, reason)
        case Ended(key):
            return _ended(state, key)
        case StreamLost():
            return replace(state, link=Link.OFFLINE), (Reconnect(),)
        case StopRequested():
            return replace(state, link=Link.STOPPED, work=None), (*_left(state), Close())


def _left(state: Participant) -> tuple[Effect, ...]:
    if state.work is None:
        return ()
    abandon = Abandon(state.work.key)
    # What is sealed can be sent by a later run; what is not never will be, so say so: the round
    # need not wait for it.
    if state.link is Link.ONLINE and state.work.stage in (Stage.EXAMINING, Stage.TRAINING):
        return (SendDecline(state.work.key, CLIENT_LEFT), abandon)
    return (abandon,)


def _offered(state: Participant, key: RoundKey) -> Step:
    for declined, reason in state.declined:
        if declined == key:
            return state, (SendDecline(key, reason),)
    if key in state.finished or (state.work is not None and state.work.key == key):
        return state, ()
    effects: tuple[Effect, ...] = ()
    if state.work is not None:
        state, effects = _ended(state, state.work.key)
    return _to(state, key, Stage.EXAMINING), (*effects, Examine(key))


def _advanced(state: Participant, event: Accepted | Sealed | Receipted) -> Step:
    key = event.key
    stage = state.work.stage if state.work is not None and state.work.key == key else None
    match stage, event:
        case Stage.EXAMINING, Accepted(sealed=False):
            return _to(state, key, Stage.TRAINING), (Train(key),)
        case (Stage.EXAMINING, Accepted()) | (Stage.TRAINING, Sealed()):
            return _to(state, key, Stage.UPLOADING), (Upload(key),)
        case Stage.UPLOADING, Receipted():
            return _to(state, key, Stage.WAITING), ()
        case _:
            assert stage is None, f"{event} while {stage}"
            # The work was abandoned meanwhile.
            return state, ()


def _late(state: Participant, key: RoundKey) -> Step:
    # Abandoned meanwhile, or told twice: by the deadline and by the server.
    if state.work is None or state.work.key != key or state.work.stage is Stage.WAITING:
        return state, ()
    assert state.work.stage is not Stage.EXAMINING, "late before it was accepted"
    return _to(state, key, Stage.WAITING), (Abandon(key),)


def _failed(state: Participant, key: RoundKey, reason: str) -> Step:
    # Work that was abandoned meanwhile: the server was told, or has moved on by itself.
    if state.work is None or state.work.key != key:
        return state, ()
    if state.work.stage is Stage.WAITING:
        # Its update may count, and the outcome is still to come; but the others need not wait for
        # an answer that this client refuses to give.
        return state, (SendDecline(key, reason),) if state.link is Link.ONLINE else ()
    declined = (*state.declined, (key, reason))[-limits.MAX_REMEMBERED_ROUNDS :]
    finished = (*state.finished, key)[-limits.MAX_REMEMBERED_ROUNDS :]
    state = replace(state, work=None, declined=declined, finished=finished)
    # Without a stream the decline waits for the offer to be repeated.
    if state.link is Link.ONLINE:
        return state, (Abandon(key), SendDecline(key, reason), Forget(key))
    return state, (Abandon(key), Forget(key))


def _ended(state: Participant, key: RoundKey) -> Step:
    if key in state.finished:
        return state, ()
    effects: tuple[Effect, ...] = (Forget(key),)
    finished = (*state.finished, key)[-limits.MAX_REMEMBERED_ROUNDS :]
    state = replace(state, finished=finished)
    if state.work is not None and state.work.key == key:
        if state.work.stage is not Stage.WAITING:
            effects = (Abandon(key), *effects)
        state = replace(state, work=None)
    return state, effects


def _to(state: Participant, key: RoundKey, stage: Stage) -> Participant:
    return replace(state, work=Work(key, stage))
