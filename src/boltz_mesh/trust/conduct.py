"""What a client's conduct in a round is worth. Pure: facts in, evidence out.

The facts are what the mesh sees in every mode: who answered, in time and in order, and who broke
the protocol. Nothing here is computed from anybody's delta, so that no round's privacy is touched.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final

from boltz_mesh.trust.reputation import (
    GAIN_256,
    LARGE_LOSS_256,
    SMALL_LOSS_256,
    Evidence,
    EvidenceKind,
    Input,
)
from boltz_protocol.errors import MalformedMessage


class Conduct(enum.StrEnum):
    """What a client of the roster did in a round, by what it ended with."""

    #: Its update is in the sum; in a sealed round it signed the survivors as well.
    COUNTED = "counted"
    #: It declined the round, or another step of it: its right, whatever the reason.
    DECLINED = "declined"
    #: It was still expected when there were enough others, or its group was left out.
    NOT_NEEDED = "not-needed"
    #: It was late in a round that the mesh itself had left alone for a while.
    EXCUSED = "excused"
    #: A deadline passed without its answer.
    LATE = "late"
    #: Another session of it checked in, with which the keys and promises of this one were lost.
    LEFT = "left"
    #: Its update arrived and was refused for good: beyond the clip norm, or not what its manifest
    #: said.
    REFUSED = "refused"


#: A round's outcome in which an update can have counted.
PUBLISHED: Final = "published"
#: Names of the inputs of conduct.
OUTCOME: Final = "outcome"
CONDUCT: Final = "conduct"
INCIDENTS: Final = "incidents"
#: Kinds of security events that prove misconduct of the client that they name in the round that
#: they name: another update or message than the one announced, a share that does not match what its
#: dealer signed, shares of something else than the dealer's secret.
MISCONDUCT: Final = ("dealer_blamed", "second_digest", "second_message", "share_refused")

_LOSSES_256: Final[Mapping[Conduct, int]] = {
    Conduct.LATE: SMALL_LOSS_256,
    Conduct.LEFT: SMALL_LOSS_256,
    Conduct.REFUSED: LARGE_LOSS_256,
}


def conduct_inputs(
    outcome: str, conduct: Conduct, incidents: Sequence[str] = ()
) -> dict[str, Input]:
    """The inputs of `judge_conduct`.

    Args:
        outcome: of the round: published, rejected or aborted.
        incidents: kinds of security events that name the client and the round.
    """
    proven = sorted({kind for kind in incidents if kind in MISCONDUCT})
    return {OUTCOME: outcome, CONDUCT: conduct.value, INCIDENTS: list(proven)}


def judge_conduct(inputs: Mapping[str, Input]) -> Evidence:
    """The evidence that follows from the inputs, and from nothing else.

    Proven misconduct counts whatever becomes of the round, as an update that was refused does. For
    the rest, nobody gains or loses by a round that came to nothing: the mesh cannot tell its own
    failure, or the others', from that of one client.

    Args:
        inputs: of `conduct_inputs`.

    Raises: MalformedMessage where they are none.
    """
    incidents = inputs.get(INCIDENTS)
    if inputs.get(CONDUCT) not in set(Conduct) or not isinstance(incidents, list):
        raise MalformedMessage("these are no inputs of conduct", field="inputs")
    conduct = Conduct(str(inputs[CONDUCT]))
    if incidents:
        reason = str(incidents[0]).replace("_", "-")
        return Evidence(EvidenceKind.CONDUCT, reason, 0, LARGE_LOSS_256, inputs)
    if conduct is not Conduct.REFUSED and inputs.get(OUTCOME) != PUBLISHED:
        return Evidence(EvidenceKind.CONDUCT, "no-result", 0, 0, inputs)
    gain = GAIN_256 if conduct is Conduct.COUNTED else 0
    loss = _LOSSES_256.get(conduct, 0)
    return Evidence(EvidenceKind.CONDUCT, conduct.value, gain, loss, inputs)
