"""The keys of variant, suite and gate files: read by the planner, shown by ``harness list`` and ``harness schema``.

What pydantic cannot say (two settings that exclude each other, files that must exist) is checked where a file is read.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from harness.measures import Measure
from harness.numerics.hardware.profiles import target_names
from harness.planning.specs import Select, VariantSpec
from harness.records import (
    CalibrationSpec,
    Condition,
    DocumentsSpec,
    ModelSpec,
    NoiseFloorSpec,
    RunSpec,
    Sequential,
    TrainingSpec,
)
from harness.records.base import Entry
from harness.rules import Rule
from harness.writers import Writer

Names = Annotated[tuple[str, ...], Field(min_length=1)]


def _list_targets(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"enum": list(target_names())}, {"type": "null"}]


class VariantFile(Entry):
    """A variant file: what is compared with what, on which suites, judged by which gates."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", examples=["my-model-int4"])
    """Name of the variant and of its run folder: letters, digits, '.', '-' and '_'."""
    reference: ModelSpec = Field(examples=[{"model": "./my-model"}])
    """The model that the variant is compared with."""
    variant: VariantSpec = Field(examples=[{"compress": [{"backend": "round_to_nearest", "bits": 4}]}])
    """The compressed side: a checkpoint, or steps that compress the reference."""
    target: str | None = Field(default=None, json_schema_extra=_list_targets)
    """Hardware that the variant is meant for; formats without a kernel on it are reported."""
    calibration: CalibrationSpec | None = Field(default=None, examples=[{"data": "pocket-calibration"}])
    """Documents that backends may look at while they compress; only for those that calibrate."""
    training: TrainingSpec | None = Field(default=None, examples=[{"data": "pocket-train", "steps": 300}])
    """Texts on which steps train the variant, and for how long; only for those that train."""
    documents: DocumentsSpec | None = Field(default=None, examples=[{"data": "./texts.jsonl"}])
    """Your own texts, for a suite with documents: {data: own}, such as texts."""
    tasks: tuple[str, ...] | dict[str, Any] | None = Field(default=None, examples=[["hellaswag"]])
    """Your own tasks: names or paths, or the settings of the measure tasks; for a suite that leaves them out."""
    suites: Names = Field(examples=[["core"]])
    """What is measured: names of shipped suites, or paths of suite files."""
    gates: Names = Field(examples=[["ship"]])
    """What must hold: names of shipped gates, or paths of gate files."""
    weak_reference: str = Field(default="", examples=["random weights, a test"])
    """Why a reference is meant that predicts the texts no better than chance; then nothing is judged."""
    outputs: Annotated[tuple[Writer, ...], Field(min_length=1)] | None = Field(default=None, examples=[["junit"]])
    """Writers of files from the finished run; without the key, report_html. run.json is always written."""
    matrix: Annotated[
        dict[str, tuple[str | int | float | bool | dict[str, Any], ...] | dict[str, Any]], Field(min_length=1)
    ] = Field(default={}, examples=[{"bits": [3, 4]}])
    """Axes with their values; every combination is a variant, with $axis in the file replaced by its value."""
    select: Select = Field(default="all", examples=["smallest_passing"])
    """Which variants of a matrix decide the exit code: all of them, or only the smallest that passes."""
    stop_at_failure: bool = False
    """Whether a variant costs nothing more once a blocking rule on documents has failed: its tasks, texts, times and
    artifact are not measured then, and rules on them stay undecided."""
    run: RunSpec | None = Field(default=None, examples=[{"ray": "auto"}])
    """Where the check runs: on the workers of a Ray cluster, else in one process. No number depends on it."""


class SuiteFile(Entry):
    """A suite file: what is measured, on which documents."""

    description: str = Field(default="", examples=["per-token metrics on 200 documents"])
    """One line that harness list shows."""
    training: TrainingSpec | None = Field(default=None, examples=[{"data": "pocket-train", "steps": 300}])
    """Texts on which steps train the variant, and for how long; only for those that train."""
    documents: DocumentsSpec | None = Field(default=None, examples=[{"data": "./texts.jsonl", "max": 200}])
    """The texts on which both models are compared; most measures need them."""
    without: tuple[str, ...] | None = Field(default=None, examples=[["tasks"]])
    """Measures that the suite leaves out on purpose, so that rules that a gate calls optional are not applied."""
    measures: tuple[Measure, ...] = Field(min_length=1, examples=[["divergence", "perplexity"]])
    """What is measured: names of measures, or mappings with settings."""
    noise_floor: Annotated[tuple[Condition, ...], Field(min_length=1)] | NoiseFloorSpec | None = Field(
        default=None, examples=[["batch_size", "padding_side"]]
    )
    """Conditions under which the reference is compared with itself, for the size of numerical noise."""


class GateFile(Entry):
    """A gate file: the rules that a variant must keep."""

    description: str = Field(default="", examples=["what must hold before a variant is released"])
    """One line that harness list shows."""
    sequential: Sequential | None = None
    """How intervals stay valid where documents are drawn until the rules are decided."""
    optional: tuple[str, ...] | None = Field(default=None, examples=[["tasks"]])
    """Measures that a suite may leave out (without); the rules on their metrics are not applied then."""
    rules: tuple[Rule, ...] = Field(
        min_length=1,
        examples=[[{"rule": "at_most", "metric": "divergence.kl_mean", "limit": 0.05, "why": "users notice more"}]],
    )
    """The rules, each with a metric, a limit and the reason for it."""
