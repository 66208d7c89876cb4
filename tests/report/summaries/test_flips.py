"""Flipped items: the question and both answers as a person reads them."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report.summaries.flips import ANSWER, PROMPT, Flip, Question, list_flips, read_questions
from harness.report.summaries.suite_tables import SuiteTables
from tests.helpers.made_tables import MadeTables

CHOICES = ("rome", "paris", "oslo")


def row(item: int = 0, **changes: Any) -> dict[str, Any]:
    plain = {
        "task": "t", "output_type": "multiple_choice", "doc_id": item, "target": "1", "reference_answer": "1",
        "variant_answer": "2", "reference_loglikelihoods": [-3.0, -1.0, -1.5],
        "variant_loglikelihoods": [-3.0, -2.0, -1.75],
    }  # fmt: skip
    return plain | changes


def flips(*rows: dict[str, Any], question: Question | None = None, most: int = 9) -> list[Flip]:
    asked = {("t", each["doc_id"]): question or Question("Where?", CHOICES) for each in rows}
    return list_flips(pd.DataFrame(list(rows)), asked, True, most)


def test_choices_are_named_by_their_text_with_the_lead_of_the_right_one() -> None:
    (flip,) = flips(row())
    assert (flip.prompt, flip.target, flip.reference, flip.variant) == ("Where?", "paris", "paris", "oslo")
    assert flip.leads == (0.5, -0.25)


def test_without_recorded_texts_choices_are_numbered_from_one() -> None:
    (flip,) = list_flips(pd.DataFrame([row()]), {}, True, 9)
    assert (flip.prompt, flip.target, flip.reference, flip.variant) == ("", "choice 2", "choice 2", "choice 3")


def test_answers_of_other_kinds_of_task() -> None:
    wrote = row(output_type="generate_until", target="42", reference_answer="42", variant_answer=" \n")
    (flip,) = flips(wrote | {"reference_loglikelihoods": [], "variant_loglikelihoods": []})
    assert (flip.target, flip.reference, flip.variant, flip.leads) == ("42", "42", "no answer", None)
    (flip,) = flips(row(output_type="loglikelihood", target=" red", reference_answer="1", variant_answer="0"))
    assert (flip.target, flip.reference) == ("red", "the right continuation is the likeliest")
    assert flip.variant == "another continuation is likelier"
    assert flip.leads is None


@pytest.mark.parametrize(
    "changes",
    [
        {"variant_answer": "0"},  # normalized by length, or otherwise: the likelihoods alone do not decide
        {"target": "[0, 1]"},
        {"target": "7"},
        {"target": "²"},
        {"variant_loglikelihoods": []},
    ],
)
def test_a_lead_is_said_only_where_likelihoods_decide(changes: dict[str, Any]) -> None:
    (flip,) = flips(row(**changes))
    assert flip.leads is None


def test_the_largest_swings_come_first_then_the_order_of_documents() -> None:
    unknown: dict[str, list[float]] = {"reference_loglikelihoods": [], "variant_loglikelihoods": []}
    small, large = [-3.0, -1.55, -1.5], [-3.0, -9.0, -1.5]
    rows = [
        row(4, **unknown),
        row(3, variant_loglikelihoods=small),
        row(2, **unknown),
        row(1, variant_loglikelihoods=large),
    ]
    assert [flip.item for flip in flips(*rows)] == [1, 3, 2, 4]
    assert [flip.item for flip in flips(*rows, most=2)] == [1, 3]


def test_long_prompts_keep_their_end_and_their_line_breaks() -> None:
    (flip,) = flips(row(), question=Question("x" * 5000 + "\nWhere?\n", ("a" * 5000,) * 3))
    assert flip.prompt.endswith("x ⏎ Where?")
    assert len(flip.prompt) == PROMPT + 2
    assert len(flip.reference) == ANSWER + 2


@given(
    st.text(max_size=12),
    st.text(max_size=12),
    st.lists(st.text(max_size=6), max_size=3),
    st.sampled_from(["multiple_choice", "loglikelihood", "generate_until"]),
)
def test_any_text_is_an_answer(target: str, answer: str, choices: list[str], kind: str) -> None:
    (flip,) = flips(
        row(output_type=kind, target=target, reference_answer=answer), question=Question(target, tuple(choices))
    )
    assert flip.reference


def test_questions_are_read_from_their_table() -> None:
    frame = pd.DataFrame({"task": ["t"], "doc_id": [3], "prompt": ["Where?"], "choices": [["a", "b"]]})
    found = read_questions(SuiteTables("core", MadeTables({"item_texts": frame})))
    assert found == {("t", 3): Question("Where?", ("a", "b"))}
    assert read_questions(SuiteTables("core", MadeTables({}))) == {}
