"""Items that one side answers right and the other wrong: the question, and the answers side by side."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.report.display import show_end
from harness.report.summaries.suite_tables import SuiteTables

if TYPE_CHECKING:
    import pandas as pd

PROMPT, ANSWER = 280, 200
"""Characters shown of a prompt, its last ones, and of an answer."""
NO_ANSWER = "no answer"
_CONTINUATIONS = {"1": "the right continuation is the likeliest", "0": "another continuation is likelier"}
"""What a side answers to a task that asks whether the right continuation is the greedy one."""


@dataclass(frozen=True)
class Question:
    """The end of a document's prompt, and its choices where there are some."""

    prompt: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Flip:
    """One item whose score changed. lost: the variant scores less than the reference, else more.

    leads: on each side, by how many nats the right choice is likelier than the best other; None where that does not
    decide the answer.
    """

    item: int
    lost: bool
    prompt: str
    target: str
    reference: str
    variant: str
    leads: tuple[float, float] | None

    @property
    def swing(self) -> float:
        """By how many nats the lead changed; 0 where it is unknown."""
        return abs(self.leads[1] - self.leads[0]) if self.leads else 0.0


def read_questions(suite: SuiteTables) -> Mapping[tuple[str, int], Question]:
    """The questions by task and document; empty where the run recorded none."""
    frame = suite.read("item_texts", ("task", "doc_id", "prompt", "choices"))
    if frame is None:
        return {}
    return {
        (str(row["task"]), int(row["doc_id"])): Question(str(row["prompt"]), tuple(map(str, row["choices"])))
        for row in frame.to_dict("records")
    }


def list_flips(rows: pd.DataFrame, questions: Mapping[tuple[str, int], Question], lost: bool, most: int) -> list[Flip]:
    """The flips among the items of one task and metric, a limited number, those with the largest swing first.

    rows: of the table ``items``, already those that flipped in the direction of ``lost``.
    """
    flips = [_read_flip(row, questions, lost) for row in rows.to_dict("records")]
    return sorted(flips, key=lambda flip: (-flip.swing, flip.item))[:most]


def _read_flip(row: Mapping[Hashable, Any], questions: Mapping[tuple[str, int], Question], lost: bool) -> Flip:
    item, kind = int(row["doc_id"]), str(row["output_type"])
    question = questions.get((str(row["task"]), item), Question("", ()))
    target, *answers = (str(row[name]) for name in ("target", "reference_answer", "variant_answer"))
    target = _name_choice(target, question.choices) if kind == "multiple_choice" else target
    return Flip(
        item=item,
        lost=lost,
        prompt=show_end(question.prompt.strip(), PROMPT),
        target=show_end(target.strip(), ANSWER),
        reference=_say_answer(answers[0], kind, question.choices),
        variant=_say_answer(answers[1], kind, question.choices),
        leads=_compute_leads(row) if kind == "multiple_choice" else None,
    )


def _say_answer(answer: str, kind: str, choices: tuple[str, ...]) -> str:
    if kind == "multiple_choice":
        answer = _name_choice(answer, choices)
    elif kind == "loglikelihood":
        answer = _CONTINUATIONS.get(answer, answer)
    return show_end(answer.strip(), ANSWER) or NO_ANSWER


def _name_choice(index: str, choices: tuple[str, ...]) -> str:
    """The text of a choice, "choice 2" where the texts are unknown, the value itself where it is no index."""
    if not (index.isascii() and index.isdigit()):
        return index
    return choices[int(index)] if int(index) < len(choices) else f"choice {int(index) + 1}"


def _compute_leads(row: Mapping[Hashable, Any]) -> tuple[float, float] | None:
    target, leads = str(row["target"]), []
    for side in ("reference", "variant"):
        scores, answer = [float(each) for each in row[f"{side}_loglikelihoods"]], str(row[f"{side}_answer"])
        decided = len(scores) > 1 and answer == str(scores.index(max(scores)))
        if not decided or not (target.isascii() and target.isdigit()) or int(target) >= len(scores):
            return None
        leads.append(scores.pop(int(target)) - max(scores))
    return leads[0], leads[1]
