"""A page being written, and the partition of everything that can be written into disjoint splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.pocket.draws import Draws, digest

SPLITS = ("train", "calibration", "heldout", "tasks")

# Sixteenths of all passages that belong to each split. A page whose passage belongs to another split is discarded.
_OWNERS = ("train",) * 10 + ("calibration",) * 2 + ("heldout",) * 2 + ("tasks",) * 2


def owning_split(passage: str) -> str:
    """The split of a passage: a function of its text alone, so splits can never share a passage."""
    return _OWNERS[digest("passage", passage) % len(_OWNERS)]


def is_held_out(*combination: object) -> bool:
    """Whether a combination (verb and thing; operands and sign) is kept out of training and calibration; 1 in 8 is."""
    return digest("combination", *combination) % 8 == 0


@dataclass(frozen=True)
class Query:
    """A question about a passage: its text, the right answer, and wrong answers, the most tempting first."""

    form: str
    question: str
    answer: str
    distractors: tuple[str, ...] = ()


class Page:
    """Collects text, marks which characters are answers, and knows how far the passage reaches."""

    def __init__(self, draws: Draws, split: str) -> None:
        self.draws = draws
        self.fresh = split in ("heldout", "tasks")  # whether combinations come from the held-out ones
        self.answers: list[tuple[int, int]] = []
        self.queries: list[Query] = []
        self._text = ""
        self._passage: str | None = None

    @property
    def text(self) -> str:
        """What has been written so far."""
        return self._text

    @property
    def passage(self) -> str:
        """The part that decides the split: the text before the first question, or all of it if there is none."""
        return self._text if self._passage is None else self._passage

    def say(self, text: str) -> None:
        """Append text that is not an answer."""
        self._text += text

    def answer(self, text: str) -> None:
        """Append text that is an answer, leading space and closing newline included."""
        self.answers.append((len(self._text), len(self._text) + len(text)))
        self._text += text

    def ask(self, queries: Sequence[Query]) -> None:
        """End the passage and append the questions with their answers."""
        self._passage = self._text
        for query in queries:
            self.say(f"\nQuestion: {query.question}\nAnswer:")
            self.answer(f" {query.answer}")
        self.queries.extend(queries)
