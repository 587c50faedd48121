"""`boltz-mesh clients trust` and `release`: why a client is trusted, recomputed; a way back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Final

from cyclopts import Parameter

from boltz_mesh.app.cli.connection import Connect, Mesh, on_mesh
from boltz_mesh.app.cli.output import (
    Exit,
    as_dict,
    enum_name,
    print_fields,
    print_json,
    print_table,
    say,
    when,
)
from boltz_mesh.trust.replay import Replayed, Step, replay
from boltz_mesh.trust.reputation import NEWCOMER, ONE, ROUNDS, EvidenceKind, TrustState, forget
from boltz_protocol.errors import MalformedMessage
from boltz_protocol.v1 import common_pb2 as common
from boltz_protocol.v1 import registry_pb2 as pb

Model = Annotated[str, Parameter(help="Only for this model; every one with evidence otherwise.")]

#: What reasons mean, for people; one that is not here stands for itself.
_WORDS: Final = {
    "counted": "its update counted",
    "declined": "declined",
    "not-needed": "was not needed",
    "excused": "late, while the mesh was away",
    "late": "missed a deadline",
    "left": "left for a new session",
    "refused": "its update was refused",
    "no-result": "the round came to nothing",
    "second-digest": "sent a second update",
    "second-message": "sent a second message",
    "share-refused": "released a wrong share",
    "dealer-blamed": "dealt shares of something else",
    "released": "released by an operator",
    "goes-with-the-others": "went with the others",
    "pulls-no-way": "neither with nor against the others",
    "next-to-nothing": "sent next to nothing",
    "unusual": "unusual, and not against the others",
    "against-the-others": "pulled against the others",
    "far-and-against-the-others": "pulled against the others from far away",
    "against-the-others-again-and-again": "pulled against the others again and again",
    "its-groups-are-bad-again-and-again": "its groups are bad again and again",
}


@dataclass(frozen=True, slots=True)
class _Explained:
    """A client's trust for a model: as the mesh says, and recomputed from every step."""

    told: pb.ClientTrust
    steps: tuple[pb.TrustEvidence, ...]
    replayed: tuple[Replayed, ...]
    #: What the last state comes to after the rounds since.
    now: TrustState

    @property
    def objections(self) -> list[str]:
        """What does not agree."""
        found = [f"step {row.step.seq}: {row.objection}" for row in self.replayed if row.objection]
        told = (self.told.positive_256, self.told.negative_256, self.told.trust_256)
        right = (self.now.positive_256, self.now.negative_256, self.now.trust_256)
        if told != right:
            found.append(
                f"the mesh says +{told[0]} -{told[1]} and trust {told[2]} now; the steps come to "
                f"+{right[0]} -{right[1]} and trust {right[2]}"
            )
        if self.told.steps != len(self.replayed):
            found.append(f"{len(self.replayed)} of {self.told.steps} steps were shown")
        return found


def trust(client_id: str, /, *, model: Model = "", connect: Connect = Connect()) -> int:
    """Explain how far a client is trusted, step by step, and recompute it.

    Trust is a Beta reputation: good and bad experience, forgotten by 1/32 with each round of the
    model. What weighs in a round is its mean less one standard deviation. Each step is computed
    again here from its inputs and the step before it; exit code 7 where one does not agree.
    """

    async def call(mesh: Mesh) -> list[_Explained]:
        answer = await mesh.registry.GetClientTrust(
            pb.GetClientTrustRequest(client_id=client_id, model_id=model)
        )
        return [await _explained(mesh, client_id, told.model_id) for told in answer.trust]

    explained = on_mesh(connect, call)
    if connect.json:
        print_json([_document(one) for one in explained])
    elif not explained:
        say(
            f"nothing is known about client {client_id} yet: a newcomer, reputation "
            f"{_shown(NEWCOMER.mean_256)}, weighs {_shown(NEWCOMER.trust_256)}"
        )
    else:
        for one in explained:
            _print(client_id, one)
    return Exit.REFUTED if any(one.objections for one in explained) else Exit.OK


def release(
    client_id: str,
    /,
    *,
    model: Annotated[str, Parameter(help="The model that it is in quarantine for.")],
    reason: Annotated[str, Parameter(help="Why, for the record.")] = "",
    connect: Connect = Connect(),
) -> None:
    """End a client's quarantine at once; it starts anew as a newcomer."""

    async def call(mesh: Mesh) -> pb.ClientTrust:
        answer = await mesh.registry.ReleaseClient(
            pb.ReleaseClientRequest(client_id=client_id, model_id=model, reason=reason)
        )
        return answer.trust

    told = on_mesh(connect, call)
    if connect.json:
        print_json(as_dict(told))
        return
    print_fields("trust", _standing(client_id, told))


async def _explained(mesh: Mesh, client_id: str, model_id: str) -> _Explained:
    """Every step, recomputed. Raises: MalformedMessage."""
    steps: list[pb.TrustEvidence] = []
    page = ""
    while True:
        answer = await mesh.registry.GetClientTrust(
            pb.GetClientTrustRequest(
                client_id=client_id,
                model_id=model_id,
                page=common.Page(size=1000, token=page),
            )
        )
        steps.extend(answer.steps)
        page = answer.next_page_token
        if not page:
            break
    (told,) = answer.trust
    replayed = tuple(replay(_step(step) for step in steps))
    last = replayed[-1] if replayed else None
    now = NEWCOMER
    if last is not None:
        # Evidence of a round that has not ended yet is ahead of the ended ones.
        now = forget(last.state, max(0, told.ordinal - last.step.ordinal))
    return _Explained(told, tuple(steps), replayed, now)


def _step(step: pb.TrustEvidence) -> Step:
    try:
        inputs = json.loads(step.inputs_json)
    except ValueError as error:
        raise MalformedMessage(f"the inputs of step {step.seq} are not JSON") from error
    if not isinstance(inputs, dict):
        raise MalformedMessage(f"the inputs of step {step.seq} are no JSON object")
    return Step(
        seq=step.seq,
        ordinal=step.ordinal,
        round_id=step.round_id,
        attempt=step.attempt,
        kind=_kind(step),
        reason=step.reason,
        gain_256=step.gain_256,
        loss_256=step.loss_256,
        inputs=inputs,
        positive_256=step.positive_256,
        negative_256=step.negative_256,
        quarantine_rounds=step.quarantine_rounds,
        trust_256=step.trust_256,
        at_ms=step.at_ms,
    )


def _kind(step: pb.TrustEvidence) -> str:
    if step.kind not in pb.TrustEvidenceKind.values():
        return str(step.kind)  # of a newer server
    return enum_name(pb.TrustEvidenceKind.Name(step.kind), "TRUST_EVIDENCE_KIND_")


# --- for people ---------------------------------------------------------------------------------


def _shown(value_256: int) -> str:
    """A number of 1/256ths, to three places; the integers stand in --json."""
    return f"{value_256 / 256:.3f}"


def _standing(client_id: str, told: pb.ClientTrust) -> list[tuple[str, object]]:
    return [
        ("client", client_id),
        ("model", told.model_id),
        ("reputation", _shown(told.score_256)),
        ("weighs", _shown(told.trust_256)),
        ("good experience", _shown(told.positive_256)),
        ("bad experience", _shown(told.negative_256)),
        ("rounds of the model", told.ordinal),
        (
            "quarantine",
            f"until round {told.quarantined_until} has ended" if told.quarantined_until else "-",
        ),
    ]


def _print(client_id: str, one: _Explained) -> None:
    print_fields("trust", _standing(client_id, one.told))
    newcomer = NEWCOMER.trust_256
    print_table(
        "what led there",
        [">round", "when", "what", ">gain", ">loss", ">good", ">bad", ">weighs", ">x newcomer", ""],
        [
            (
                row.step.ordinal,
                when(row.step.at_ms),
                _what(row.step),
                _change(row.step.gain_256),
                _change(row.step.loss_256),
                _shown(row.step.positive_256),
                _shown(row.step.negative_256),
                _shown(row.step.trust_256),
                f"{row.step.trust_256 / newcomer:.2f}",
                "" if row.agrees else "DISAGREES",
            )
            for row in one.replayed
        ],
    )
    if objections := one.objections:
        for objection in objections:
            say(f"does not agree: {objection}")
    else:
        say(f"recomputed from its {len(one.replayed)} steps: all of them agree")


def _change(value_256: int) -> str:
    return _shown(value_256) if value_256 else "-"


def _what(step: Step) -> str:
    """The reason in words, and what it was computed from where that says more."""
    words = _WORDS.get(step.reason, step.reason)
    match step.kind:
        case EvidenceKind.CONDUCT:
            return words
        case EvidenceKind.QUARANTINE:
            return f"quarantine for {step.quarantine_rounds} rounds: {words}{_facts(step)}"
        case _:
            return f"{words}{_facts(step)}"


def _facts(step: Step) -> str:
    facts = [_fact(name, value) for name, value in step.inputs.items() if name != ROUNDS]
    return f" ({', '.join(facts)})" if facts else ""


def _fact(name: str, value: Any) -> str:
    """In plain units: what is counted in 1/256ths says so in its name."""
    plain = name.removesuffix("_256")
    if plain != name and isinstance(value, int):
        value = value / ONE
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{plain.replace('_', ' ')} {shown}"


# --- for programs -------------------------------------------------------------------------------


def _document(one: _Explained) -> dict[str, Any]:
    steps = []
    for step, row in zip(one.steps, one.replayed, strict=True):
        shown = as_dict(step)
        shown["inputs"] = dict(row.step.inputs)
        del shown["inputs_json"]
        steps.append({**shown, "agrees": row.agrees, "objection": row.objection})
    return {
        **as_dict(one.told),
        "steps": steps,
        "agrees": not one.objections,
        "objections": one.objections,
    }
