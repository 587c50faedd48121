from __future__ import annotations

import msgspec
import pytest

from boltz_mesh.app.demo import messages as m
from boltz_mesh.app.demo.settings import PRESET_60


@pytest.mark.parametrize(
    "order",
    [
        m.Setup(folder="/f", kind="linear", trainer="numpy", preset=PRESET_60, smallest_cohort=57),
        m.Enrol(join_strings=("a", "b")),
        m.Join(model_id="vol-2019", rounds=4),
        m.Measure(number=1),
    ],
)
def test_orders_come_back_from_their_line(order: m.Order) -> None:
    line = m.line_of(order)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert m.parse_order(line) == order


@pytest.mark.parametrize(
    "news",
    [
        m.Enrolled(),
        m.Joined(model_id="vol"),
        m.Left(model_id="vol", counted=12),
        m.Measured(number=3, sent=1, received=2),
        m.Declined(model_id="vol", desk=0, why="two\nlines"),
        m.Failed(why="no"),
    ],
)
def test_news_come_back_from_their_line(news: m.News) -> None:
    line = m.line_of(news)
    assert line.count(b"\n") == 1
    assert m.parse_news(line) == news


def test_a_line_of_the_other_direction_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        m.parse_order(m.line_of(m.Enrolled()))
    with pytest.raises(msgspec.DecodeError):
        m.parse_news(b"not json\n")


def test_join_strings_stay_out_of_repr() -> None:
    assert "secret" not in repr(m.Enrol(join_strings=("secret",)))
