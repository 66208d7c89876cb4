"""The objective ``traces``: worked answers of the teacher, of which a task's checker accepts the final one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from harness.errors import BackendError
from harness.training.objectives._base import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from harness.training.examples import Example
    from harness.training.objectives._given import Given, Source
    from harness.training.objectives._outputs import Seen
    from harness.training.questions import Question, Questions


class Traces(Objective):
    """Cross-entropy of the teacher's answers to a task's questions, of those that the task counts as right (rejection
    sampling: Zelikman et al. 2022, Yuan et al. 2023).

    Of every training question of the task ``samples`` answers are drawn, once, before the first step. The task's own
    filters and metrics decide which are kept; repeated ones count once.
    """

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

    def gather(self, given: Given) -> Source:
        """Answers of the teacher that the task accepts. Raises BackendError if there are too few to learn from."""
        from harness.training.objectives._given import Source

        if given.training.ask is None:
            raise BackendError(f"distill: traces: the task {self.task} cannot be asked here")
        asked = given.training.ask(self.task, self.include, self.questions)
        prompts = [given.encode(question.prompt) for question in asked.questions]

        def write() -> list[list[Example]]:
            return [
                given.write(prompts, asked.new_tokens, self.sampling_temperature, given.seed + number)
                for number in range(self.samples)
            ]

        settings = self.model_dump(include={"objective", "samples", "sampling_temperature"})
        rounds = given.remember(settings | {"most": asked.new_tokens}, prompts, write)
        # What the task accepts is asked every time: its files may say otherwise than when the answers were written.
        accepted = [
            self._keep(given, asked, question, [written[place] for written in rounds])
            for place, question in enumerate(asked.questions)
        ]
        apart = -(-len(accepted) // 10)
        learned, held_out = (
            [each for some in part for each in some] for part in (accepted[:-apart], accepted[-apart:])
        )
        drawn, kept = len(prompts) * self.samples, len(learned) + len(held_out)
        if not learned or not held_out:
            raise BackendError(
                f"distill: traces: the task {self.task} accepts {kept} of {drawn} answers of the teacher, too few to "
                "learn from and to evaluate; raise questions or samples, or choose a task that the reference can do"
            )
        note = f"traces: {kept} different answers of the teacher to {self.task} ({asked.split}) accepted, {drawn} drawn"
        return Source(given.translate(learned), given.translate(held_out), notes=(note,))

    def _keep(self, given: Given, asked: Questions, question: Question, drawn: Sequence[Example]) -> list[Example]:
        """The different accepted answers to a question, each up to the token that ends it."""
        kept: dict[str, Example] = {}
        for example in drawn:
            answer = asked.cut(given.decode(example.ids[example.scored_from :]))
            if answer not in kept and question.accepts(answer):
                kept[answer] = given.cut(example, asked.is_complete)
        return list(kept.values())

    def terms(self, seen: Seen) -> Mapping[str, Tensor]:
        """Cross-entropy in nats a token."""
        from harness.training.objectives._terms import cross_entropy

        return {self.name: cross_entropy(seen.student, seen.batch).mean()}
