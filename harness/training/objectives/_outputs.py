"""What an objective sees of a training step: a batch, and what student and teacher compute on it.

Legend: B texts, T positions, N scored tokens, D hidden size, V vocabulary, H heads, E size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.training.examples import Batch


@dataclass(frozen=True)
class AttentionInputs:
    """What one attention layer computes with: queries [B, H, T, E], keys and values (perhaps of fewer heads), and the
    factor of the products."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float


@dataclass(frozen=True)
class Outputs:
    """What one model computes on a batch.

    states: the last hidden states from which the scored tokens are predicted. head: logits [n, V] of n rows of them;
    vocabulary: V. blocks: outputs [B, T, D] of every decoder block; attention: inputs of every attention layer; both
    are empty unless an objective reads them.
    """

    states: Tensor
    head: Callable[[Tensor], Tensor]
    vocabulary: int
    blocks: tuple[Tensor, ...] = ()
    attention: tuple[AttentionInputs, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What an objective sees of a step.

    teacher: None unless the objective ``uses_teacher``. parts: as ``Objective.make_parts`` gave it. before:
    log-likelihood in nats of the scored tokens of each text under the student before training, for an objective that
    ``compares_with_start``.
    """

    batch: Batch
    student: Outputs
    teacher: Outputs | None
    parts: nn.Module
    before: Tensor | None = None

    @property
    def both(self) -> tuple[Outputs, Outputs]:
        """Student and teacher. Raises ValueError without a teacher."""
        if self.teacher is None:
            raise ValueError("the outputs of the teacher are missing")
        return self.student, self.teacher
