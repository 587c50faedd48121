"""Contributions as the contract shows them."""

from __future__ import annotations

from typing import Any

from boltz_mesh.services.contributions import contributions_of
from boltz_mesh.storage.outcomes import RoundOutcome
from boltz_mesh.trust.outcome import Outcome, inputs_of
from boltz_protocol.ids import ClientId
from tests.unit.trust.readings import OPPOSED, reading


def _of(client: str, share_256: int = 256, **changed: Any) -> RoundOutcome:
    return RoundOutcome(ClientId(client), "any", inputs_of(Outcome(reading(**changed), share_256)))


def test_nothing_comes_of_nothing() -> None:
    assert contributions_of([]) == []


def test_clients_by_their_agreement() -> None:
    liar, good, better = contributions_of(
        [
            _of("aa", row="aa", weight=10, **OPPOSED),
            _of("bb", row="bb", weight=10),
            _of("cc", row="cc", weight=20, agreement_256=512),
        ]
    )[::-1]
    assert [each.row for each in (better, good, liar)] == ["cc", "bb", "aa"]
    assert (better.share, better.agreement) == (0.5, 2.0)
    assert (good.share, good.agreement) == (0.25, 1.0)
    assert (liar.agreement, liar.verdict) == (-1.0, "far-and-against-the-others")
    assert list(liar.clients) == ["aa"]
    assert not liar.HasField("influence")


def test_influence_comes_first() -> None:
    found = contributions_of(
        [_of("aa", row="aa", influence=-0.5, agreement_256=999), _of("bb", row="bb", influence=0.0)]
    )
    assert [(each.row, each.influence) for each in found] == [("bb", 0.0), ("aa", -0.5)]
    assert found[0].HasField("influence")


def test_a_group_is_one_row_with_its_clients() -> None:
    group: dict[str, Any] = {"row": "3", "members": 2, "weight": 30}
    other: dict[str, Any] = {"row": "10", "members": 1, "weight": 10}
    first, second = contributions_of(
        [_of("aa", 64, **group), _of("cc", **other), _of("bb", 192, **group)]
    )
    assert (first.row, list(first.clients), first.share) == ("10", ["cc"], 0.25)
    assert (second.row, list(second.clients), second.share) == ("3", ["aa", "bb"], 0.75)
