"""The objective ``feature``: what the teacher computes inside, rather than what it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import BackendError
from harness.training.objectives._base import Objective, Reads

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.training.examples import Batch
    from harness.training.objectives._outputs import AttentionInputs, Seen


class Feature(Objective):
    """Distance of what student and teacher compute inside.

    ``hidden``: outputs of decoder blocks, the student's through a learned projection that is not kept (Romero et al.
    2015); ``attention``: attention probabilities; ``values``: relations of the values that attention reads (MiniLM,
    Wang et al. 2020 and 2021). Alone it leaves the student's head untrained: mix it with another objective.
    """

    objective: Literal["feature"] = "feature"
    """Its name."""
    match: Literal["hidden", "attention", "values"] = "hidden"
    """What is compared."""
    blocks: Literal["all", "last"] = "all"
    """all: every decoder block of the student with the teacher's at the same depth; last: only the last of both."""

    @property
    def name(self) -> str:
        """With what is compared."""
        return f"feature.{self.match}"

    @property
    def reads(self) -> tuple[Reads, ...]:  # type: ignore[override]
        """Outputs of blocks, or inputs of attention layers."""
        return ("blocks",) if self.match == "hidden" else ("attention",)

    def make_parts(self, student: nn.Module, teacher: nn.Module, seed: int) -> nn.Module:
        """A projection [F, D] for each pair of blocks: the identity where the sizes are equal, else at random."""
        import torch
        from torch import nn

        parts = nn.Module()
        if self.match != "hidden":
            return parts
        chance = torch.Generator().manual_seed(seed)
        narrow, wide = (_hidden_size(model) for model in (student, teacher))
        for index in range(len(self.pair(*(_count_blocks(model) for model in (student, teacher))))):
            drawn = torch.randn(wide, narrow, generator=chance) * narrow**-0.5
            start = torch.eye(wide) if wide == narrow else drawn
            parts.register_parameter(f"projection_{index}", nn.Parameter(start))
        return parts

    def pair(self, students: int, teachers: int) -> list[tuple[int, int]]:
        """The compared blocks of student and teacher, of which there are so many."""
        from harness.training.objectives._relations import pair_evenly

        pairs = pair_evenly(students, teachers)
        return pairs if self.blocks == "all" else pairs[-1:]

    def terms(self, seen: Seen) -> Mapping[str, Tensor]:
        """Mean over the pairs of blocks. Raises BackendError for attention layers that cannot be compared."""
        import torch

        from harness.training.objectives._relations import hidden_loss

        (student, teacher), batch = seen.both, seen.batch
        if self.match == "hidden":
            pairs = self.pair(len(student.blocks), len(teacher.blocks))
            found = [
                hidden_loss(batch.select(student.blocks[own]), batch.select(teacher.blocks[other]), projection)
                for (own, other), projection in zip(pairs, seen.parts.parameters(), strict=True)
            ]
        else:
            pairs = self.pair(len(student.attention), len(teacher.attention))
            found = [self._relate(student.attention[own], teacher.attention[other], batch) for own, other in pairs]
        return {self.name: torch.stack(found).mean()}

    def _relate(self, student: AttentionInputs, teacher: AttentionInputs, batch: Batch) -> Tensor:
        from harness.training.objectives._relations import attention_loss, value_loss

        if self.match == "values":
            heads = [each.value.shape[1] for each in (student, teacher)]
            return value_loss(student, teacher, min(heads), batch)
        own, other = student.query.shape[1], teacher.query.shape[1]
        if own != other:
            raise BackendError(
                f"distill: match: attention compares heads one by one, and the student has {own}, the teacher {other}; "
                "write match: values"
            )
        return attention_loss(student, teacher, batch)


def _hidden_size(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[1])


def _count_blocks(model: nn.Module) -> int:
    from harness.modules.layer_pairs import block_numbers

    return len(block_numbers(model))
