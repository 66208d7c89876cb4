"""The objective ``on_policy``: what the student writes itself, scored by the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from harness.training.objectives._base import DivergenceName, Generating

if TYPE_CHECKING:
    from torch import Tensor

    from harness.training.objectives._given import Given, Source
    from harness.training.objectives._outputs import Seen


class OnPolicy(Generating):
    """Divergence of student and teacher on texts that the student has just continued itself (generalized knowledge
    distillation, Agarwal et al. 2024).

    Texts are drawn again at every step; no gradient flows through the drawing. Only generated tokens are compared.
    """

    objective: Literal["on_policy"] = "on_policy"
    """Its name."""
    divergence: DivergenceName = "reverse"
    """forward: KL(teacher‖student). reverse: KL(student‖teacher). jensen_shannon: both against the mixture of the two,
    weighted by beta."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """β of jensen_shannon: the teacher's share of the mixture."""

    def gather(self, given: Given) -> Source:
        """The beginnings of the training texts, which the student continues at every step."""
        from harness.training.examples import Example
        from harness.training.objectives._given import Source, continue_prompts

        texts, held_out = (
            [Example(ids, max(1, len(ids) - 1)) for ids in some] for some in given.prompts(self.prompt_tokens)
        )
        return Source(texts, held_out, write=continue_prompts(self.new_tokens, self.sampling_temperature))

    def terms(self, seen: Seen) -> Mapping[str, Tensor]:
        """Divergence in nats a token."""
        from harness.training.objectives._terms import compare_rows

        return {self.name: compare_rows(*seen.both, seen.batch, self.divergence, beta=self.beta).mean()}
