"""Settings of an optimization that every step that trains has."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from harness.records.base import Entry


class Optimization(Entry):
    """How a training step moves its parameters: AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), a schedule, and
    when it ends."""

    batch: Annotated[int, Field(ge=1)] = 8
    """Documents of one optimizer step. Where memory runs out, they go through in smaller parts whose gradients add
    up to those of the whole."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-4
    """Largest learning rate, reached after the warmup."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warmup: to 0 along a cosine or a line, or unchanged."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    clip: Annotated[float, Field(gt=0, examples=[1.0])] | None = 1.0
    """Largest norm of all gradients together; longer ones are shortened to it. null: no limit."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay of AdamW."""
    evaluations: Annotated[int, Field(ge=1)] = 20
    """How often the held-out documents are evaluated during training, evenly spaced, and once before it."""
    early_stop: Annotated[int, Field(ge=1, examples=[3])] | None = None
    """End after this many evaluations without a lower held-out loss, and keep the weights of the lowest. null: train
    to the end and keep the last weights."""

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of optimizer step ``step``, counted from 0, of ``steps``."""
        rising = round(self.warmup * steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        left = 1 - (step - rising) / max(1, steps - rising)
        course = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
        return self.learning_rate * course[self.schedule]

    def is_evaluated(self, step: int, steps: int) -> bool:
        """Whether the held-out documents are evaluated once ``step`` of ``steps`` optimizer steps are done."""
        return step == steps or step * self.evaluations // steps > (step - 1) * self.evaluations // steps
