"""Questions of a task whose answers the task itself can check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """prompt: what a model continues. accepts: whether the task counts a continuation as right."""

    prompt: str
    accepts: Callable[[str], bool]


@dataclass(frozen=True)
class Questions:
    """Those of one split of a task. until: texts that end an answer. new_tokens: most tokens of one."""

    task: str
    split: str
    questions: Sequence[Question]
    until: tuple[str, ...]
    new_tokens: int

    def cut(self, answer: str) -> str:
        """The answer up to the first text that ends it, which is left out."""
        ends = [answer.index(end) for end in self.until if end and end in answer]
        return answer[: min(ends)] if ends else answer

    def is_complete(self, answer: str) -> bool:
        """Whether a text ends the answer."""
        return any(end and end in answer for end in self.until)
