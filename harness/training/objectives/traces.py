"""The objective ``traces``: worked answers of the teacher, of which a task's checker accepts the final one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from harness.training.objectives._base import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from harness.training.objectives._outputs import Seen


class Traces(Objective):
    """Cross-entropy of the teacher's answers to a task's questions, of those that the task counts as right (rejection
    sampling: Zelikman et al. 2022, Yuan et al. 2023).

    Of every training question of the task ``samples`` answers are drawn, once, before the first step. The task's own
    filters and metrics decide which are kept; repeated ones count once.
    """

    learns_from = "traces"
    paths: ClassVar[tuple[str, ...]] = ("include",)

    objective: Literal["traces"] = "traces"
    """Its name."""
    task: str = Field(min_length=1, examples=["my_sums"])
    """An lm-eval task that generates answers and has a training split."""
    include: tuple[str, ...] = Field(default=(), examples=[["./tasks"]])
    """Folders with task files of your own, or such files."""
    questions: Annotated[int, Field(ge=1)] = 200
    """Most questions of its training split, from the beginning."""
    samples: Annotated[int, Field(ge=1)] = 4
    """Answers that are drawn for each question."""
    sampling_temperature: Annotated[float, Field(ge=0)] = 1.0
    """Logits are divided by it before a token is drawn; 0: the most probable one."""

    @property
    def uses_teacher(self) -> bool:
        """No: the answers are all that it takes from the teacher."""
        return False

    @property
    def same_tokens(self) -> bool:
        """No: texts can be read by any tokenizer."""
        return False

    def losses(self, seen: Seen) -> Mapping[str, Tensor]:
        """Cross-entropy in nats a token."""
        from harness.training.objectives._terms import cross_entropy

        return {"loss": cross_entropy(seen.student, seen.batch).mean()}
