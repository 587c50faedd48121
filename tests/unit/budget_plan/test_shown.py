"""What `boltz-mesh budget MODEL` makes of a mesh's answer."""

from __future__ import annotations

from boltz_mesh.app.cli.budget import _fields
from boltz_protocol.v1 import aggregator_pb2 as pb

SPENT = pb.GetPrivacyBudgetResponse(
    model_id="m",
    client_id="c",
    epsilon_spent=1.5,
    epsilon_held=1.75,
    epsilon_budget=2.0,
    epsilon_replace_one=3.5,
    epsilon_lifetime=2.5,
    delta=1e-5,
    unit="client-period",
    relation="contribution-set-to-zero",
    period="2026-10-01/2027-01-01",
    rounds_charged=3,
    rounds_left=1,
    rounds_lifetime=7,
    starts_at_ms=1_790_812_800_000,
    ends_at_ms=1_798_761_600_000,
    epsilon_all_models=4.0,
    epsilon_all_models_budget=8.0,
    delta_all_models=1e-6,
    chain_length=12,
    chain_head=bytes(31) + b"\x07",
    chain_verified=True,
)


def shown(answer: pb.GetPrivacyBudgetResponse) -> dict[str, str]:
    return {name: str(value) for name, value in _fields(answer)}


def test_every_epsilon_has_delta_unit_and_relation() -> None:
    lines = shown(SPENT)
    one = "(at delta 1e-05, one client-period, contribution-set-to-zero)"
    for name in ("epsilon spent", "with running rounds", "epsilon allowed"):
        assert lines[name].endswith(one)
    assert lines["if replaced instead"] == (
        "3.500 (at delta 1e-05, one client-period, contribution-replaced: sensitivity 2C)"
    )


def test_the_lifetime_and_all_models_are_about_the_client() -> None:
    lines = shown(SPENT)
    one = "one client, contribution-set-to-zero"
    assert lines["over its lifetime"] == f"2.500 (at delta 1e-05, {one}; 7 rounds)"
    assert lines["over all models"] == f"4.000 of 8.000 allowed (at delta 1e-06, {one})"


def test_period_window_and_ledger() -> None:
    lines = shown(SPENT)
    assert lines["period"] == "2026-10-01/2027-01-01"
    assert lines["rounds may start"] == "2026-10-01 00:00:00Z to 2027-01-01 00:00:00Z"
    assert lines["ledger"] == f"12 events, head {'00' * 31}07 (checked just now)"


def test_what_a_plan_does_not_have_is_left_out() -> None:
    bare = pb.GetPrivacyBudgetResponse(
        epsilon_budget=2.0,
        delta=1e-5,
        unit="client",
        relation="contribution-set-to-zero",
        epsilon_spent=float("inf"),
    )
    lines = shown(bare)
    assert not {"period", "rounds may start", "over all models"} & set(lines)
    assert lines["epsilon spent"].startswith("unlimited")
    assert "nobody" in lines["client"]
    assert lines["ledger"] == "0 events, head none (not checked; --verify does)"


def test_all_models_without_a_budget_of_their_own() -> None:
    free = pb.GetPrivacyBudgetResponse()
    free.CopyFrom(SPENT)
    free.epsilon_all_models_budget = 0
    assert "allowed" not in shown(free)["over all models"]
