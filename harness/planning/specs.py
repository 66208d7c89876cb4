"""The records of a plan: one variant file with its suites and gates, resolved and typed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny

from harness.backends import Backend
from harness.engines import CheckpointKind, Engine
from harness.engines.transformers import Transformers
from harness.measures import Measure
from harness.probes import Probe
from harness.records import (
    CalibrationSpec,
    DocumentsSpec,
    ModelSpec,
    NoiseFloorSpec,
    RunSpec,
    Sequential,
    TrainingSpec,
)
from harness.records.base import Entry, Record
from harness.records.plan import GGUF, AskedDtype, Side
from harness.rules import Rule
from harness.writers import Writer


class VariantSpec(Entry):
    """The compressed side: a checkpoint (``model``) or the reference itself, then backend steps in order."""

    model: str = Field(default="reference", min_length=1)
    """reference (which the steps compress), pocket, a local folder or GGUF file, or a hub id (owner/name)."""
    file: str | None = Field(default=None, examples=["model-Q4_K_M.gguf"])
    """The GGUF file in a folder or hub repository."""
    revision: str | None = Field(default=None, examples=["main"])
    """Branch, tag or commit of a model on the hub."""
    dtype: AskedDtype | None = None
    """Number type in which it is computed; null: that of the reference, auto: that of its own checkpoint."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run; on the hub it needs the commit as revision."""
    engine: SerializeAsAny[Engine] = Field(default_factory=Transformers, examples=["llama_cpp"])
    """What computes the logits; transformers by default."""
    tokenizer: Literal["own", "reference"] = "own"
    """The checkpoint's own tokenizer, or the reference's if the vocabulary is the same."""
    adapter: str | None = Field(default=None, examples=["./my-adapter"])
    """Folder of a PEFT adapter."""
    merge: bool = False
    """Whether the adapter is merged into the weights before the steps; otherwise it stays attached to the compressed
    weights (QLoRA)."""
    compress: tuple[SerializeAsAny[Backend], ...] = Field(
        default=(), examples=[[{"backend": "round_to_nearest", "bits": 4}]]
    )
    """Steps that compress the model, in order."""
    artifact: Literal["save", "none"] = "save"
    """Whether a variant that is made in the run is saved as it would be released (runs/<name>/artifact), reloaded in a
    fresh process and compared with the model in memory, if a suite has the measure artifact. A checkpoint without
    steps is its own artifact, so nothing is written."""
    layers: tuple[Annotated[int, Field(ge=0)] | None, ...] | None = Field(
        default=None, min_length=1, examples=[[0, 2, 4, None]]
    )
    """For a checkpoint with another number of decoder layers, the layer of the reference that each of its layers stands
    for; null for one without a counterpart. Reference layers that are not named are not compared."""

    @property
    def is_gguf(self) -> bool:
        """Whether the checkpoint is a GGUF file, on this machine or on the hub."""
        return self.file is not None or self.model.endswith(GGUF)

    @property
    def checkpoint_kind(self) -> CheckpointKind:
        """The kind of checkpoint that the engine must read."""
        return "gguf" if self.is_gguf else "reference" if self.model == "reference" else "folder"

    @property
    def made_here(self) -> bool:
        """Whether the variant exists only in memory: steps or a merged adapter made it from other files."""
        return bool(self.compress) or (self.adapter is not None and self.merge)


class SuiteSpec(Record):
    """A named suite: documents, measures, and the probes (with merged settings) that the measures need.

    without: the measures that it leaves out on purpose (see ``harness/planning/left_out.py``).
    """

    name: str
    source: str
    documents: DocumentsSpec | None = None
    measures: tuple[SerializeAsAny[Measure], ...] = Field(min_length=1)
    probes: tuple[SerializeAsAny[Probe], ...] = ()
    noise_floor: NoiseFloorSpec | None = None
    without: tuple[str, ...] = ()


class RuleSpec(Record):
    """One rule of a gate and its position (``file:line``).

    left_out: the measure that the suites leave out on purpose, so that the rule is not applied; empty if it is.
    """

    rule: SerializeAsAny[Rule]
    where: str
    left_out: str = ""

    def resolve(self) -> dict[str, Any]:
        """The rule as plain data for run.json: its name, its settings and its position."""
        left_out = {"left_out": self.left_out} if self.left_out else {}
        return {"rule": self.rule.kind, **self.rule.settings(), "where": self.where} | left_out


class GateSpec(Record):
    """A named gate: its rules in file order.

    sequential: as in its file, None for the default. optional: the measures that a suite may leave out if it says so.
    """

    name: str
    source: str
    sequential: Sequential | None = None
    optional: tuple[str, ...] = ()
    rules: tuple[RuleSpec, ...] = Field(min_length=1)

    def resolve(self) -> dict[str, Any]:
        """The gate as plain data for run.json: every rule with its name, its settings and its position."""
        return self.model_dump(mode="json") | {"rules": [each.resolve() for each in self.rules]}


Select = Literal["all", "smallest_passing"]
"""all: every variant of a file decides the exit code. smallest_passing: the smallest that passes does, if one does."""


class Plan(Record):
    """Everything that one variant file requests, checked before a model is loaded."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    source: str
    choice: dict[str, str] = Field(default_factory=dict)
    """Of a file with a matrix: the label of this variant's value on every axis."""
    reference: ModelSpec
    variant: VariantSpec
    auto_dtype: tuple[Side, ...] = ()
    """The sides that ask for ``dtype: auto``; their own records state what was taken."""
    target: str | None = None
    """Target hardware of the variant, by its name in the table of kernels."""
    calibration: CalibrationSpec | None = None
    training: TrainingSpec | None = None
    suites: tuple[SuiteSpec, ...] = Field(min_length=1)
    gates: tuple[GateSpec, ...] = Field(min_length=1)
    weak_reference: str = ""
    """Why a reference is meant that predicts the texts no better than chance; empty: then nothing is judged."""
    select: Select = "all"
    """Which variants of a file with a matrix decide the exit code."""
    stop_at_failure: bool = False
    """Whether only the documents of a variant are measured if they decide that it fails."""
    outputs: tuple[SerializeAsAny[Writer], ...] = ()
    """The writers of files from the finished run, in addition to run.json, which is always written."""
    run: RunSpec | None = None
    """Where the check runs; None: in one process. It is not part of what was asked: no number depends on it."""

    @property
    def saves_artifact(self) -> bool:
        """Whether the variant is made here, and saved as it would be released."""
        return self.variant.made_here and self.variant.artifact == "save"

    @property
    def reloads_artifact(self) -> bool:
        """Whether a probe is to compare what was saved."""
        return self.saves_artifact and any(probe.runs == "artifact" for suite in self.suites for probe in suite.probes)
