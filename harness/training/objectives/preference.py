"""The objective ``preference``: of two texts the one that the teacher finds more probable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from harness.errors import BackendError
from harness.training.objectives._base import Generating

if TYPE_CHECKING:
    from torch import Tensor

    from harness.training.examples import Example
    from harness.training.objectives._given import Given, Source
    from harness.training.objectives._outputs import Seen


class Preference(Generating):
    """−log σ(β·[log π(y₊)/π₀(y₊) − log π(y₋)/π₀(y₋)]) of the text y₊ that the teacher prefers to y₋ (direct preference
    optimization, Rafailov et al. 2023); π is the student, π₀ the student before training.

    Candidates are drawn once, before the first step, from teacher and student. The teacher's mean log-likelihood a
    token ranks them: the first is preferred to the last. Nothing is learned from equal ones.
    """

    compares_with_start = True

    objective: Literal["preference"] = "preference"
    """Its name."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """β: how much the student may depart from its beginning for a preference; small allows more."""
    teacher_samples: Annotated[int, Field(ge=1)] = 1
    """Candidates of the teacher for every text."""
    student_samples: Annotated[int, Field(ge=0)] = 1
    """Candidates of the student for every text."""

    @model_validator(mode="after")
    def _has_candidates(self) -> Preference:
        if self.teacher_samples + self.student_samples < 2:
            raise ValueError("at least two candidates for each text: teacher_samples + student_samples")
        return self

    @property
    def uses_teacher(self) -> bool:
        """No: it has ranked the texts before."""
        return False

    def gather(self, given: Given) -> Source:
        """Pairs of texts that continue the same beginning. Raises BackendError if no two texts differ."""
        from harness.training.objectives._given import Source

        texts, held_out = given.prompts(self.prompt_tokens)

        def write() -> list[list[Example]]:
            return [self._pair(given, texts, 0), self._pair(given, held_out, 1)]

        learned, kept_out = given.remember(self.model_dump(exclude={"weight", "beta"}), [*texts, *held_out], write)
        if not learned or not kept_out:
            raise BackendError(
                f"distill: preference: of {len(texts)} texts and {len(held_out)} held-out ones, {len(learned) // 2} "
                f"and {len(kept_out) // 2} gave two different candidates, expected at least one of each; write a "
                "sampling_temperature above 0, or raise new_tokens or held_out"
            )
        before, before_out = (given.likelihoods(given.student, some) for some in (learned, kept_out))
        note = f"preference: {len(learned) // 2} pairs of {len(texts)} texts; the others gave equal candidates"
        return Source(learned, kept_out, 2, before, before_out, notes=(note,) if len(learned) // 2 < len(texts) else ())

    def _pair(self, given: Given, prompts: Sequence[Tensor], part: int) -> list[Example]:
        """The candidates that the teacher finds most and least probable, for each prompt that has two."""
        rounds = [
            given.write(prompts, self.new_tokens, self.sampling_temperature, given.seed + 100 * part + number, student)
            for student, count in ((False, self.teacher_samples), (True, self.student_samples))
            for number in range(count)
        ]
        every = [example for written in rounds for example in written]
        totals = given.likelihoods(given.training.teacher, every)
        means = [float(total) / example.scored for total, example in zip(totals, every, strict=True)]
        pairs = []
        for place in range(len(prompts)):
            ranked = sorted(range(place, len(every), len(prompts)), key=lambda index: -means[index])
            first, last = every[ranked[0]], every[ranked[-1]]
            if means[ranked[0]] > means[ranked[-1]]:
                pairs += [first, last]
        return pairs

    def terms(self, seen: Seen) -> Mapping[str, Tensor]:
        """The mean loss of a pair. The batch holds pairs, in each the preferred text first."""
        from harness.training.objectives._terms import log_likelihoods

        if seen.before is None:
            raise ValueError("preference: the likelihoods before training are missing")
        gained_B = log_likelihoods(seen.student, seen.batch) - seen.before
        preferred_P, other_P = gained_B.unflatten(0, (-1, 2)).unbind(1)
        return {self.name: preference_loss(preferred_P, other_P, self.beta).mean()}


def preference_loss(preferred_P: Tensor, other_P: Tensor, beta: float) -> Tensor:
    """Loss [P] of pairs by what each text gained in log-likelihood: −log σ(β·(preferred − other))."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (preferred_P - other_P))
