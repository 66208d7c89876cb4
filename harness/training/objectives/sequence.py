"""The objective ``sequence``: the teacher's own texts as labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from harness.training.objectives._base import Generating

if TYPE_CHECKING:
    from torch import Tensor

    from harness.training.examples import Example
    from harness.training.objectives._given import Given, Source
    from harness.training.objectives._outputs import Seen


class Sequence(Generating):
    """Cross-entropy of what the teacher writes after the beginnings of the texts (Kim and Rush 2016).

    Written once, before the first step. Only generated tokens are learned, an end of text among them.
    """

    objective: Literal["sequence"] = "sequence"
    """Its name."""

    @property
    def uses_teacher(self) -> bool:
        """No: the texts are all that it takes from the teacher."""
        return False

    @property
    def same_tokens(self) -> bool:
        """No: texts can be read by any tokenizer."""
        return False

    def gather(self, given: Given) -> Source:
        """What the teacher writes after the beginning of every training text."""
        from harness.training.objectives._given import Source

        texts, held_out = given.prompts(self.prompt_tokens)

        def write() -> list[list[Example]]:
            return [
                given.write(prompts, self.new_tokens, self.sampling_temperature, given.seed + number)
                for number, prompts in enumerate((texts, held_out))
            ]

        learned, kept_out = given.remember(self.model_dump(exclude={"weight"}), [*texts, *held_out], write)
        return Source(given.translate(learned), given.translate(kept_out))

    def terms(self, seen: Seen) -> Mapping[str, Tensor]:
        """Cross-entropy in nats a token."""
        from harness.training.objectives._terms import cross_entropy

        return {self.name: cross_entropy(seen.student, seen.batch).mean()}
