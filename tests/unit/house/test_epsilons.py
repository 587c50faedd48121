"""The check that every printed epsilon passes through sees what it must, and no more."""

from __future__ import annotations

import json

import pytest

from tests.support.epsilons import check_document, check_output, check_page, check_text

WHOLE = "epsilon 2.00 at delta 1e-05 (unit: one client; relation: contribution set to zero)"


def test_whole_statements_are_counted() -> None:
    assert check_text(WHOLE) == 1
    assert check_text(f"spent\n{WHOLE}\nheld: {WHOLE}") == 2
    assert check_text("no epsilon is claimed, and this is round 2") == 0
    assert check_text("all epsilons at delta 1e-5, one client, set to zero\n\nx\n\nepsilon 3") == 2


@pytest.mark.parametrize(
    "part", [" at delta 1e-05", "unit: one client; ", "relation: contribution set to zero"]
)
def test_a_part_that_is_missing_is_named(part: str) -> None:
    with pytest.raises(AssertionError, match="without its"):
        check_text(WHOLE.replace(part, ""))


def test_a_statement_does_not_lend_its_parts_to_a_later_paragraph() -> None:
    with pytest.raises(AssertionError, match="without its delta"):
        check_text(f"{WHOLE}\n\nbetween\n\nepsilon 3 in the end")


def test_settings_that_are_given_back_claim_nothing() -> None:
    assert check_text("--epsilon 0: give a number above 0") == 0
    assert check_text("epsilon -1.0 must be a positive number; 2.0 would do") == 0


def test_documents() -> None:
    stated = {"delta": 1e-5, "unit": "client", "relation": "contribution-set-to-zero"}
    assert check_document({"epsilon": 2.0, **stated}) == 1
    assert check_document({**stated, "rounds": [{"epsilon_spent": 1.0}, {"epsilon_spent": 2}]}) == 2
    assert check_document({"epsilon": None}) == 0
    for name in stated:
        with pytest.raises(AssertionError, match=f"has no \\['{name}'\\]"):
            check_document([{"epsilon": 2.0} | {k: v for k, v in stated.items() if k != name}])
    with pytest.raises(AssertionError, match="has no"):
        check_document([{"inner": stated}, {"epsilon": 2.0}])


def test_outputs_of_each_kind() -> None:
    line = json.dumps({"epsilon": 2.0, "delta": 1e-5, "unit": "client", "relation": "replaced"})
    assert check_output(line) == 1
    assert check_output(f"{line}\n{line}\n") == 2
    assert check_output(WHOLE) == 1
    assert check_page(f"<html><p>{WHOLE}</p><style>p {{}}</style></html>") == 1
    with pytest.raises(AssertionError, match="without its"):
        check_page(f"<section><p>{WHOLE}</p></section><div>x</div><p>epsilon <b>3</b></p>")
