"""Grouped rounds of the library's own clients against a real server."""

from __future__ import annotations

from boltz_client import NoticeKind, OwnerLimits
from boltz_client.owner import ALL_MODES
from boltz_protocol.messages import RoundMode
from tests.integration.client.party import Party, declare_sealed
from tests.support.clients import published

GROUPS = {"mode": "grouped", "min": 5, "target": 10, "tables": "[grouping]\ncount = 2\n"}


async def test_ten_clients_in_two_groups(party: Party, model: str) -> None:
    allowed = OwnerLimits(modes=frozenset({RoundMode.GROUPED}), smallest_cohort=5)
    members = await party.add(10, owner=allowed)
    await declare_sealed(party, model, **GROUPS)
    round_id = await party.start(model)
    assert (await published(party.mesh, round_id)).received == 10
    await party.check_model(model, round_id, members)
    for member in members:
        assert member.task is not None
        summary = await member.task
        assert (summary.published, summary.counted, summary.declined) == (1, 1, 0)


async def test_an_owner_may_want_more_in_a_sum_than_a_group_has(party: Party, model: str) -> None:
    await party.add(9, owner=OwnerLimits(modes=ALL_MODES))
    (*_, picky) = await party.add(1, owner=OwnerLimits(modes=ALL_MODES, smallest_cohort=6))
    await declare_sealed(party, model, **GROUPS)
    await party.start(model)
    await picky.heard.until(NoticeKind.DECLINED)
    (declined,) = picky.heard.all(NoticeKind.DECLINED)
    assert "a group of the round may end with 5 clients" in str(declined)
