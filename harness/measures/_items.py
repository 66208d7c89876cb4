"""The paired items of one task under one metric, and the metrics derived from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from harness.measures._shared import Count
from harness.records import Measurement, Metric, Skipped

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Better = Literal["lower", "higher", "neither"]
Found = Iterator[Measurement | Skipped]

PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity")
BITS_PER_BYTE = "bits_per_byte"
DERIVED: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="recovery",
            title="recovery",
            spread="log",
            spread_size=0.25,
            unit="ratio",
            better="higher",
            neutral=1.0,
            description="score of the variant / score of the reference; better is the direction of the score",
        ),
        Metric(
            name="flips",
            title="flips",
            spread="share",
            chance="guess_flips",
            unit="share",
            better="lower",
            description="share of items whose answer, or its correctness, changes",
        ),
        Metric(
            name="flips_to_wrong",
            title="flips to wrong",
            spread="share",
            chance="guess_losses",
            unit="share",
            better="lower",
            description="share of items that the reference gets right and the variant wrong",
        ),
        Metric(
            name="flips_to_right",
            title="flips to right",
            spread="share",
            unit="share",
            better="neither",
            description="share of items that the reference gets wrong and the variant right",
        ),
        Metric(
            name="ece",
            title="ECE",
            sides=True,
            spread="none",
            unit="probability",
            better="lower",
            description="expected calibration error of the choice, confidence by softmax of log-likelihoods",
        ),
        Metric(
            name="brier",
            title="Brier score",
            sides=True,
            spread="mean",
            spread_size=0.1,
            unit="probability",
            better="lower",
            description="mean (confidence − right)² of the choice, confidence by softmax of log-likelihoods",
        ),
    )
}
"""Metrics derived from the scores of another metric, by the last part of their name."""


def _generalize_metric(metric: Metric) -> Metric:
    return metric.model_copy(
        update={"name": f"tasks.*.{metric.name}", "title": f"{metric.title} on *", "units": "items"}
    )


def _likelihoods() -> Iterator[Metric]:
    """Metrics of tasks that score a text by its likelihood."""
    for name in PERPLEXITIES:
        title = name.replace("_", " ")
        yield Metric(
            name=f"{name}_ratio",
            title=f"{title} ratio",
            unit="ratio",
            better="lower",
            neutral=1.0,
            spread="log",
            spread_size=0.03,
        )
        yield Metric(name=name, title=title, unit="perplexity", better="lower", sides=True, spread="none")
    yield Metric(
        name=BITS_PER_BYTE,
        title="bits per byte",
        unit="bits/byte",
        better="lower",
        sides=True,
        spread="mean",
        spread_size=0.02,
    )


FURTHER = Metric(
    name="tasks.*.*",
    title="score on * (*)",
    unit="score",
    better="neither",
    description="declared by the task files: accuracy, exact_match …; a group means all of its tasks",
    units="items",
    sides=True,
    spread="paired",
    spread_size=0.05,
    chance="guess",
)
SCORES = tuple(
    FURTHER.model_copy(update={"name": f"tasks.*.{name}", "title": f"{title} on *"})
    for name, title in (("accuracy", "accuracy"), ("exact_match", "exact match"))
)
TASK_METRICS = (*map(_generalize_metric, (*DERIVED.values(), *_likelihoods())), *SCORES, FURTHER)
"""Every metric that a task can yield; the last one is its score under any other name."""


@dataclass(frozen=True)
class TaskScores:
    """The rows of one task under one metric, in the order of the documents."""

    task: str
    metric: str
    rows: pd.DataFrame

    @cached_property
    def reference(self) -> Floats:
        """Scores of the reference, one per item."""
        return self.rows["reference_score"].to_numpy(dtype=np.float64)

    @cached_property
    def variant(self) -> Floats:
        """Scores of the variant, one per item."""
        return self.rows["variant_score"].to_numpy(dtype=np.float64)

    @cached_property
    def clusters(self) -> NDArray[np.object_]:
        """Hashes of the documents: a repeated document is one independent observation."""
        return self.rows["doc_hash"].to_numpy(dtype=object)

    @cached_property
    def count(self) -> Count:
        """Number of items and of distinct documents."""
        return Count(len(self.rows), int(self.rows["doc_hash"].nunique()))

    @property
    def better(self) -> Better:
        """The direction that the task declares for its metric."""
        return cast(Better, self.rows["better"].iloc[0])

    @property
    def kind(self) -> Literal["bits", "perplexity", "binary", "graded"]:
        """Which metrics can be derived from the scores."""
        if (self.rows["reference_loglikelihoods"].map(len) == 1).all():
            if self.metric == BITS_PER_BYTE:
                return "bits"
            if self.metric in PERPLEXITIES:
                return "perplexity"
        scores = np.concatenate([self.reference, self.variant])
        return "binary" if np.isin(scores[np.isfinite(scores)], (0.0, 1.0)).all() else "graded"

    @property
    def has_confidence(self) -> bool:
        """Whether the score is the correctness of the most likely of several choices."""
        several = self.rows["output_type"].iloc[0] == "multiple_choice"
        return self.kind == "binary" and several and self.metric == "accuracy"

    @property
    def conditions(self) -> str:
        """Conditions of the prompts: BOS, and how many were cut."""
        bos = {
            "both": "prompts begin with BOS",
            "neither": "prompts begin without BOS",
            "reference": "prompts begin with BOS on the reference's side alone",
            "variant": "prompts begin with BOS on the variant's side alone",
        }[str(self.rows["bos"].iloc[0])]
        cut = int(self.rows["cut"].sum())
        return bos + (f"; {cut} of {len(self.rows)} prompts cut to the context" if cut else "")

    def main(self) -> Metric:
        """The metric ``tasks.<task>.<metric>`` itself."""
        units = {"bits": "bits/byte", "perplexity": "perplexity", "binary": "share", "graded": "score"}
        better = "lower" if self.kind in ("bits", "perplexity") else self.better
        return Metric(name=f"tasks.{self.task}.{self.metric}", unit=units[self.kind], better=better)

    def derive_metric(self, name: str) -> Metric:
        """The metric ``tasks.<task>.<name>``, derived from this one."""
        better = self.better if name == "recovery" else DERIVED[name].better
        return DERIVED[name].model_copy(update={"name": f"tasks.{self.task}.{name}", "better": better})

    def ratio(self) -> Metric:
        """The metric ``tasks.<task>.<metric>_ratio`` of a perplexity."""
        return Metric(name=f"tasks.{self.task}.{self.metric}_ratio", unit="ratio", better="lower", neutral=1.0)

    def label(self) -> dict[str, str]:
        """The derived metric's name of the metric it was computed from."""
        return {"metric": self.metric}
