"""The objective ``preference``: of two texts the one that the teacher finds more probable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness.training.objectives._base import Generating

if TYPE_CHECKING:
    from torch import Tensor

    from harness.training.objectives._outputs import Seen


class Preference(Generating):
    """−log σ(β·[log π(y₊)/π₀(y₊) − log π(y₋)/π₀(y₋)]) of the text y₊ that the teacher prefers to y₋ (direct preference
    optimization, Rafailov et al. 2023); π is the student, π₀ the student before training.

    Candidates are drawn once, before the first step, from teacher and student. The teacher's mean log-likelihood a
    token ranks them: the first is preferred to the last. Nothing is learned from equal ones.
    """

    learns_from = "pairs"
    compares_with_start = True

    objective: Literal["preference"] = "preference"
    """Its name."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """β: how much the student may depart from its beginning for a preference; small allows more."""
    teacher_samples: Annotated[int, Field(ge=0)] = 1
    """Candidates of the teacher for every text."""
    student_samples: Annotated[int, Field(ge=0)] = 1
    """Candidates of the student for every text."""

    @property
    def uses_teacher(self) -> bool:
        """No: it has ranked the texts before."""
        return False

    def losses(self, seen: Seen) -> Mapping[str, Tensor]:
        """The mean loss of a pair, and the share of pairs of which the preferred text has gained more.

        The batch holds pairs, in each the preferred text first.
        """
        from harness.training.objectives._terms import log_likelihoods

        if seen.before is None:
            raise ValueError("preference: the likelihoods before training are missing")
        gained_B = log_likelihoods(seen.student, seen.batch) - seen.before
        preferred_P, other_P = gained_B.unflatten(0, (-1, 2)).unbind(1)
        return {
            "loss": preference_loss(preferred_P, other_P, self.beta).mean(),
            "ranked_alike": (preferred_P > other_P).double().mean().to(gained_B.dtype),
        }


def preference_loss(preferred_P: Tensor, other_P: Tensor, beta: float) -> Tensor:
    """Loss [P] of pairs by what each text gained in log-likelihood: −log σ(β·(preferred − other))."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (preferred_P - other_P))
