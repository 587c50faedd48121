"""When a round's survivors are charged: before the server can learn anything, and once.

`sealed` rounds charge in the step that enters UNMASKING: from there on the clients release the
shares that open the sum. `open` rounds charge when the noised aggregate is there, or when it was
seen and rejected. The charge stays, whatever becomes of the round.
"""

from __future__ import annotations

from boltz_mesh.rounds.state import (
    BY_RULES,
    Aborted,
    AbortReason,
    AdvertisingKeys,
    Aggregating,
    CheckingConsistency,
    Collecting,
    Published,
    Releasing,
    RevealingNonces,
    RoundState,
    Running,
    Selecting,
    SharingKeys,
    Unmasking,
)


def is_charged(state: RoundState | None) -> bool:
    """Whether the survivors' budgets have been debited when a round stands at `state`."""
    match state:
        case Unmasking() | Releasing() | Published():
            return True
        case Aggregating():
            return state.parameters.is_sealed
        case Aborted():
            return state.charged
        case (
            None
            | Selecting()
            | AdvertisingKeys()
            | RevealingNonces()
            | SharingKeys()
            | Collecting()
            | CheckingConsistency()
        ):
            return False


def charges(before: RoundState | None, after: RoundState) -> tuple[str, ...]:
    """The survivors that the transition from `before` to `after` has to debit; mostly nobody.

    `before` and `after` may be a step apart, or a transaction of several steps: survivors are
    frozen before they are charged, so both ways name the same clients.
    """
    if is_charged(before) or not is_charged(after):
        return ()
    if not isinstance(after, Aborted):
        assert isinstance(after, Unmasking | Releasing), "a charge outside the charging steps"
        return after.survivors
    # Charged and ended in one go: an open aggregate was rejected, or clients or an operator ended
    # a sealed round in the very batch that began to open it.
    assert isinstance(before, CheckingConsistency | Aggregating), "charged before it was frozen"
    return before.survivors


def abort_by_rules(
    state: Running, reason: AbortReason, detail: str = "", *, charging: bool = False
) -> Aborted:
    """The end of a round that the rules give up.

    `charging`: this very step debits the survivors.
    """
    return Aborted(
        parameters=state.parameters,
        reason=f"{reason}: {detail}" if detail else str(reason),
        by=BY_RULES,
        charged=charging or is_charged(state),
    )
