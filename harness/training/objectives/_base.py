"""Base class of objectives: settings, what an objective reads, and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from harness.records import Entry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.training.objectives._given import Given, Source
    from harness.training.objectives._outputs import Seen

DivergenceName = Literal["forward", "reverse", "jensen_shannon"]
Reads = Literal["blocks", "attention"]
"""What an objective reads of a model beside its logits: outputs of decoder blocks, inputs of attention layers."""


class Objective(Entry, ABC):
    """One term of the loss that a student minimizes."""

    reads: ClassVar[tuple[Reads, ...]] = ()
    """What it reads beside logits."""
    compares_with_start: ClassVar[bool] = False
    """Whether its loss needs the likelihoods of its texts under the student before training."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of this loss in the sum."""

    @property
    def name(self) -> str:
        """What it is called in errors and learning curves."""
        return str(self.model_dump(include={"objective"})["objective"])

    @property
    def uses_teacher(self) -> bool:
        """Whether the loss needs what the teacher computes on the batch."""
        return True

    @property
    def same_tokens(self) -> bool:
        """Whether student and teacher must have the same tokenizer, because both read the same token ids."""
        return True

    def make_parts(self, student: nn.Module, teacher: nn.Module, seed: int) -> nn.Module:
        """What is learned beside the student, and left out of it afterwards; nothing by default.

        Raises BackendError for two models that cannot be compared.
        """
        from torch import nn

        return nn.Module()

    def gather(self, given: Given) -> Source:
        """The texts that it is computed on: the training texts themselves by default.

        Raises BackendError or DataError where there are none.
        """
        return given.texts

    @abstractmethod
    def terms(self, seen: Seen) -> Mapping[str, Tensor]:
        """Scalars by name that are added up to the loss."""


class Generating(Objective):
    """An objective that needs texts which a model continues."""

    prompt_tokens: Annotated[int, Field(ge=1)] = 32
    """Tokens at the beginning of each training text that are continued, BOS included."""
    new_tokens: Annotated[int, Field(ge=1)] = 64
    """Most tokens that are generated."""
    sampling_temperature: Annotated[float, Field(ge=0)] = 1.0
    """Logits are divided by it before a token is drawn; 0: the most probable one."""
