from __future__ import annotations

import pytest

from boltz_mesh.app.demo.findings import caveats, findings
from boltz_mesh.app.demo.report import Result
from tests.unit.demo.samples import interval, privacy


def _results(**levels: float) -> dict[str, Result]:
    return {name: Result(mse_mean=level, mse_sd=None, seeds=0) for name, level in levels.items()}


def test_a_settled_gain_is_called_less_error() -> None:
    (sentence,) = findings({}, [interval("federated", "ewma", 0.01, 0.02, 0.03)], None)
    assert "federated has 8.0% less error than ewma" in sentence
    assert "excludes zero" in sentence


def test_a_loss_is_called_more_error_and_not_settled() -> None:
    pair = interval("federated_dp", "best_local", -0.03, -0.01, 0.01)
    (sentence,) = findings({}, [pair], None)
    assert "4.0% more error" in sentence
    assert "includes zero" in sentence
    assert any("nothing is settled" in text for text in caveats({}, [pair], 24))


@pytest.mark.parametrize(
    ("private", "words"),
    [
        (0.2420, "raised the error by 0.8%"),
        (0.2401, "nothing that can be seen"),
        (0.2380, "it fell by 0.8%, which is the luck of the noise"),
    ],
)
def test_the_price_of_privacy_is_said_as_it_is(private: float, words: str) -> None:
    results = _results(federated=0.2400, federated_dp=private)
    (sentence,) = findings(results, [], privacy())
    assert words in sentence
    assert "Epsilon 2 (at delta 1e-05, one desk, its contribution set to zero" in sentence
    assert findings(results, [], None) == ()


@pytest.mark.parametrize(("own", "words"), [(0.25, "below"), (0.20, "above")])
def test_a_newcomer_is_compared_with_itself(own: float, words: str) -> None:
    results = _results(cold_start_federated=0.225, cold_start_best_local=own)
    (sentence,) = findings(results, [], None)
    assert words in sentence
    assert "beside the mesh" in sentence


@pytest.mark.parametrize(
    ("public", "words", "little"),
    [
        (0.2390, "is about as good as federated_dp", True),
        (0.2280, "is 5.0% lower in error than federated_dp", True),
        (0.2640, "is 10.0% higher in error than federated_dp", False),
    ],
)
def test_public_data_alone_are_compared(public: float, words: str, little: bool) -> None:
    texts = caveats(_results(federated_dp=0.2400, public_index=public), [], 24)
    (sentence,) = [text for text in texts if "public index" in text]
    assert words in sentence
    assert ("add little" in sentence) == little


def test_without_a_mesh_row_nothing_is_compared() -> None:
    texts = caveats(_results(public_index=0.24), [], 24)
    assert not any("public index" in text for text in texts)


def test_a_weak_local_reference_is_admitted() -> None:
    weak = caveats(_results(best_local=0.2586, best_local_any_strength=0.2473), [], 24)
    assert any("hardly count" in text for text in weak)
    strong = caveats(_results(best_local=0.2245, best_local_any_strength=0.2245), [], 24)
    assert not any("hardly count" in text for text in strong)


def test_few_years_are_called_few() -> None:
    assert any("4 years are few" in text for text in caveats({}, [], 4))
    assert not any("are few" in text for text in caveats({}, [], 24))
    assert any("not a money machine" in text for text in caveats({}, [], 24))
