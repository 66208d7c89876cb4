"""What a training leaves: its curves, its memory, and where it ended."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

TRAIN, HELD_OUT, HELD_OUT_KL, HELD_OUT_NLL = "loss", "held_out_loss", "held_out_kl", "held_out_nll"
"""Series of every training: the loss of a step, and the loss, KL(reference ‖ student) and NLL of the held-out documents
in nats per token. Named losses are ``loss.NAME``."""
MemoryPart = Literal["base", "teacher", "trainable", "gradients", "optimizer", "activations"]


class Point(NamedTuple):
    """One value of a curve after ``step`` optimizer steps."""

    step: int
    series: str
    value: float


class Memory(NamedTuple):
    """Bytes of one part: by its shapes (None: not forecast), and as measured in the first step."""

    part: MemoryPart
    forecast: int | None
    measured: int


@dataclass(frozen=True)
class Fitted:
    """A finished training.

    step: the backend. steps: optimizer steps that were done. kept: the step whose weights were kept. batch: documents
    of a step. part: documents that went through at a time (smaller where memory ran out). tokens: of all steps.
    cached: whether it was taken from an earlier run.
    """

    step: str
    steps: int
    kept: int
    batch: int
    part: int
    tokens: int
    curves: tuple[Point, ...] = ()
    memory: tuple[Memory, ...] = ()
    cached: bool = False

    def to_json(self) -> str:
        """As text; ``from_json`` gives an equal record."""
        return json.dumps(asdict(replace(self, cached=False)))

    @staticmethod
    def from_json(text: str) -> Fitted:
        """The record that ``to_json`` wrote."""
        fields = json.loads(text)
        fields["curves"] = tuple(Point(*each) for each in fields["curves"])
        fields["memory"] = tuple(Memory(*each) for each in fields["memory"])
        return Fitted(**fields)

    def last(self, series: str) -> float | None:
        """The value of a series at the step that was kept, or the last one before it; None if there is none."""
        return next((p.value for p in reversed(self.curves) if p.series == series and p.step <= self.kept), None)

    def first(self, series: str) -> float | None:
        """The first value of a series; None if there is none."""
        return next((p.value for p in self.curves if p.series == series), None)
