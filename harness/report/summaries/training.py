"""How the steps of a variant were trained: curves, what was kept, and memory as forecast and as measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from harness.records.training import HELD_OUT, HELD_OUT_KL, HELD_OUT_NLL, TRAIN
from harness.report.drawing.curves import Curve, learning_curves
from harness.report.summaries.suite_tables import SuiteTables

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("part", "fit", "at", "name", "value", "other")
PARTS = {
    "base": "frozen weights",
    "teacher": "reference",
    "trainable": "trained parameters",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
}
"""Parts of the memory in words."""
LOSSES = {TRAIN: ("training", "variant", False), HELD_OUT: ("held out", "reference", True)}


@dataclass(frozen=True)
class TrainingSummary:
    """One training. curves: values by step, by series. memory: (part, forecast, measured) in bytes."""

    name: str
    numbers: dict[str, int]
    curves: dict[str, tuple[tuple[int, float], ...]]
    memory: tuple[tuple[str, float | None, float], ...]

    def at(self, series: str, kept: bool = True) -> float | None:
        """The value of a series at the step that was kept, or the first one."""
        points = [(step, value) for step, value in self.curves.get(series, ()) if step <= self.numbers["kept"]]
        return points[-1 if kept else 0][1] if points else None

    @property
    def rows(self) -> list[tuple[str, float | None, float | None]]:
        """What the held-out documents show: words, before the first step, at the step that was kept."""
        words = {HELD_OUT: "Loss", HELD_OUT_KL: "KL from the reference", HELD_OUT_NLL: "NLL"}
        return [(text, self.at(name, False), self.at(name)) for name, text in words.items() if name in self.curves]

    def draw_losses(self) -> Markup:
        """The loss of every step, and of the held-out documents."""
        drawn = [Curve(words, self.curves[name], tone, marked) for name, (words, tone, marked) in self._losses()]
        return learning_curves(drawn, self.numbers["kept"], f"{self.name}: loss by step")

    def draw_divergence(self) -> Markup | None:
        """KL(reference ‖ variant) of the held-out documents; None where it is not known."""
        points = self.curves.get(HELD_OUT_KL)
        if not points:
            return None
        curve = Curve("KL", points, "variant", True)
        return learning_curves([curve], self.numbers["kept"], f"{self.name}: held-out KL from the reference by step")

    def _losses(self) -> list[tuple[str, tuple[str, str, bool]]]:
        return [(name, drawn) for name, drawn in LOSSES.items() if name in self.curves]


def read_trainings(suites: Sequence[SuiteTables]) -> list[TrainingSummary]:
    """The trainings of a variant in order; every suite's table tells the same, so the first one that has any counts."""
    for suite in suites:
        frame = suite.read("training", _COLUMNS)
        if frame is not None and (frame["part"] == "fit").any():
            return [_summarize(str(name), rows) for name, rows in frame[frame["fit"] != ""].groupby("fit", sort=False)]
    return []


def _summarize(name: str, rows: pd.DataFrame) -> TrainingSummary:
    numbers, curves, memory = (rows[rows["part"] == part] for part in ("fit", "curve", "memory"))
    series = {
        str(key): tuple(zip(some["at"].tolist(), some["value"].tolist(), strict=True))
        for key, some in curves.groupby("name", sort=False)
    }
    parts = tuple(
        (PARTS.get(part, part), None if forecast != forecast else forecast, measured)
        for part, forecast, measured in zip(memory["name"], memory["other"], memory["value"], strict=True)
    )
    counted = {str(key): int(value) for key, value in zip(numbers["name"], numbers["value"], strict=True)}
    return TrainingSummary(name.partition(" ")[2], counted, series, parts)
