"""The objective ``logit``: the teacher's distribution over the next token, mixed with the token of the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness.training.objectives._base import DivergenceName, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from harness.training.objectives._outputs import Seen


class Logit(Objective):
    """α·CE + (1 − α)·τ²·KL(teacher‖student) for every token of the texts (Hinton et al. 2015).

    The factor τ² keeps the size of gradients when the temperature changes. With ``alpha: 1`` the teacher is not asked:
    the student learns hard labels alone.
    """

    objective: Literal["logit"] = "logit"
    """Its name."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the hard labels; the rest is the teacher's."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """τ, by which the logits of both are divided."""
    divergence: DivergenceName = "forward"
    """forward: KL(teacher‖student). reverse: KL(student‖teacher). jensen_shannon: both against the mixture of the two,
    weighted by beta."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """β of jensen_shannon: the teacher's share of the mixture."""

    @property
    def uses_teacher(self) -> bool:
        """Whether anything but hard labels is learned."""
        return self.alpha < 1

    @property
    def same_tokens(self) -> bool:
        """Whether distributions over tokens are compared."""
        return self.uses_teacher

    def terms(self, seen: Seen) -> Mapping[str, Tensor]:
        """Hard labels and the divergence from the teacher, with their factors, in nats a token."""
        from harness.training.objectives._terms import compare_rows, cross_entropy

        if not self.uses_teacher:
            return {"logit.hard": cross_entropy(seen.student, seen.batch).mean()}
        found = compare_rows(
            *seen.both, seen.batch, self.divergence, self.temperature, self.beta, hard=self.alpha > 0
        ).mean(0)
        taught = {"logit.soft": (1 - self.alpha) * self.temperature**2 * found[0]}
        return {"logit.hard": self.alpha * found[1], **taught} if self.alpha else taught
