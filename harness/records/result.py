"""What was found: measurements, verdicts, and the run that holds them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.errors import FailureClass
from harness.records.base import Record
from harness.records.comparison import Comparison
from harness.records.formats import NumberFormat
from harness.records.metric import Better, Metric, find_metric

SCHEMA_VERSION = 2

Basis = Literal["sampled", "counted"]
Status = Literal["pass", "fail", "inconclusive", "error", "skipped"]
Level = Literal["block", "warn"]
Side = Literal["reference", "variant"]
Role = Literal["linear", "head", "embedding", "norm", "other"]


class NoiseFloor(Record):
    """How far a metric is from neutral when nothing is compared but the reference with itself, computed otherwise.

    value: |change − neutral|, the largest over the conditions that the suite names; condition: the one that gave it;
    documents: how many it was measured on.
    """

    value: Annotated[float, Field(ge=0)]
    condition: str
    documents: Annotated[int, Field(ge=1)]


class Measurement(Record):
    """One number about a pair of models, with its interval.

    basis: ``sampled`` from documents (items, blocks, calls) that stand for others, so that only an interval says how
    sure it is; ``counted`` over everything there is (bytes, files), so that low = high = change.
    reference and variant are the metric on each side, where it exists on one side alone (a perplexity does, a
    divergence does not). change is the paired comparison that rules judge: a difference variant − reference, or a
    ratio variant / reference, or a divergence; neutral is its value when both sides are equal, and stands for infinity
    with infinite_neutral (see Metric). low and high bound ``change`` at ``confidence`` (two-sided); variant_low and
    variant_high bound ``variant``. No interval means that none is known (a maximum, say), never that the number is
    exact. n counts observations, clusters the independent units (documents) among them.
    non_finite names the side on which NaN or infinity was met; the numbers are then absent. not_judged, when not
    empty, is the reason why the number is shown but no rule may rest on it. disturbed: what happened to the machine
    meanwhile (swapping, throttling), which leaves every rule inconclusive. floor: how far the metric moves without
    any damage, where that was measured.
    """

    name: str
    labels: dict[str, str] = Field(default_factory=dict)
    unit: str
    better: Better
    basis: Basis
    neutral: float = 0.0
    infinite_neutral: bool = False
    reference: float | None = None
    variant: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    variant_low: float | None = None
    variant_high: float | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    n: Annotated[int, Field(ge=0)]
    clusters: Annotated[int, Field(ge=0)]
    method: str
    non_finite: Side | None = None
    not_judged: str = ""
    disturbed: str = ""
    floor: NoiseFloor | None = None

    @property
    def effect(self) -> float | None:
        """How far the change is from that of equal sides, in either direction; None where that distance is infinite."""
        return None if self.change is None or self.infinite_neutral else abs(self.change - self.neutral)

    @model_validator(mode="after")
    def _check_fields(self) -> Measurement:
        if self.non_finite is None and self.change is None and self.variant is None:
            raise ValueError(f"{self.name}: a finite measurement needs a change or a variant value")
        for low, value, high in (
            (self.low, self.change, self.high),
            (self.variant_low, self.variant, self.variant_high),
        ):
            if (low is None) != (high is None):
                raise ValueError(f"{self.name}: an interval has two ends")
            if low is not None and high is not None and value is not None and not low <= value <= high:
                raise ValueError(f"{self.name}: interval [{low}, {high}] does not contain {value}")
        return self


class Skipped(Record):
    """A metric, or a whole measure, that could not be served, and why.

    unsupported: no run could serve it, because the variant's engine, one of its steps or its kind of files has nothing
    to show for it. cut_short: it was left out because a blocking rule had failed; rules on it are undecided. failure:
    the class of failure of a rule on it; None: that of the metric.
    """

    measure: str
    reason: str
    labels: dict[str, str] = Field(default_factory=dict)
    unsupported: bool = False
    cut_short: bool = False
    failure: FailureClass | None = None


class Slice(Record):
    """What was measured on a part of the documents of a suite: those whose ``label`` (kind, length …) is ``value``.

    documents: how many of them were seen; none, where a suite stopped before it drew one.
    """

    suite: str
    label: str
    value: str
    documents: Annotated[int, Field(ge=0)]
    measurements: tuple[Measurement, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def name(self) -> dict[str, str]:
        """What tells its measurements from those of the whole: one more label."""
        return {"slice": f"{self.label}={self.value}"}


class Stop(Record):
    """Where a suite stopped that draws no more documents, or items of a task, than its rules need.

    task: whose items they are; empty: documents. looks: after how many documents (items) it would be looked at;
    documents: after how many it was left. watched: the rules that were waited for; undecided: those of them that were
    not decided by then, because even all documents were too few or because another, blocking rule had failed. failed:
    the blocking rules, of this sample or of another one, because of which no more was drawn although something was
    left to decide. fixed: how many documents a size that is fixed beforehand needs for every one of them with the power
    of ``harness plan``, by the variance that was found; None where no number is enough, or none is known.
    """

    suite: str
    task: str = ""
    looks: tuple[int, ...] = Field(min_length=1)
    documents: Annotated[int, Field(ge=1)]
    watched: tuple[str, ...]
    undecided: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    fixed: int | None = None


class Verdict(Record):
    """What one rule says about one measurement (or about its absence)."""

    gate: str
    rule: str
    metric: str
    labels: dict[str, str] = Field(default_factory=dict)
    status: Status
    expected: str
    found: str
    margin: float | None = None
    """Distance from the bound that decides to the limit, in units of the metric: positive is on the safe side."""
    because: str
    reason: str = ""
    """``because`` without what ``expected`` and ``found`` say; empty if it repeats neither."""
    level: Level
    where: str
    why: str = ""
    failure: FailureClass | None = None
    """What kind of thing keeps the rule from passing; None where it passes."""


class ModuleFormat(Record):
    """How the weight of one module is stored, and by which kernel it is computed.

    bits_per_weight counts codes, scales and zero points. activations is the format to which the module's input is
    rounded; None: it is not. kernel is ``real`` when the stored format is what the matrix product reads, ``simulated``
    when values of that format are held as floats. role is what the module is in the model. distinct_values is the
    largest number of distinct values that the grid check counted among weights that share a scale, where the weight is
    held as floats. gemm_kind says what the GEMM of a packed weight was seen to multiply: ``codes``, or ``floats``
    (weight-only: dequantized in the kernel); empty: it was not looked at.
    """

    module: str
    type: str
    parameters: Annotated[int, Field(ge=0)]
    stored_bytes: Annotated[int, Field(ge=0)]
    bits_per_weight: Annotated[float, Field(ge=0)]
    format: NumberFormat
    activations: NumberFormat | None = None
    kernel: Literal["real", "simulated"] = "real"
    backend: str = ""
    role: Role = "other"
    distinct_values: Annotated[int, Field(ge=0)] | None = None
    gemm_kind: Literal["", "codes", "floats"] = ""

    @property
    def compressed(self) -> bool:
        """Whether a backend or a checkpoint put the weight into another format than plain floats."""
        return bool(self.backend) or self.format.granularity != "none"


class CacheFormat(Record):
    """How attention keys and values are kept between tokens.

    bits_per_value is that of a long text: codes and scales and zero points, keys and values averaged. residual counts
    the newest tokens, which stay in full precision. skipped_layers, counted from 0, stay so too.
    """

    keys: NumberFormat
    values: NumberFormat
    bits_per_value: Annotated[float, Field(gt=0)]
    residual: Annotated[int, Field(ge=0)]
    skipped_layers: tuple[int, ...] = ()
    kernel: Literal["real", "simulated"] = "real"
    backend: str

    def __str__(self) -> str:
        """ "keys int4 per channel …; values int4 per token …; the newest 32 tokens in full precision"."""
        newest = f"; the newest {self.residual} tokens in full precision" if self.residual else ""
        layers = ", ".join(map(str, self.skipped_layers))
        skipped = f"; layers {layers} in full precision" if layers else ""
        return f"keys {self.keys}; values {self.values}{newest}{skipped}"


class CalibrationData(Record):
    """The documents that a model was fitted to while it was compressed. sha256: of all their token ids, in order."""

    source: str
    documents: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=1)]
    sha256: str


class TrainingData(Record):
    """The texts that a model was trained on while it was made, and those that were held out. sha256: of the token ids
    of both, in order."""

    source: str
    documents: Annotated[int, Field(ge=1)]
    held_out: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=1)]
    sha256: str


class Identity(Record):
    """Which model this was: hashes of what was loaded (and compressed), not names alone."""

    name: str
    source: str
    architecture: str
    revision: str | None
    dtype: str
    device: str
    attention: str
    parameters: int
    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str
    beside_sha256: str = ""
    """Of what its files hold beside the model as loaded: tensors that its class leaves there, and the quantization
    config; empty if there is neither."""
    modules: tuple[ModuleFormat, ...] = ()
    cache: CacheFormat | None = None
    calibration: CalibrationData | None = None
    training: TrainingData | None = None

    @property
    def simulated(self) -> bool:
        """Whether anything compressed is held as floats: weights, activations or the KV cache."""
        return any(part.kernel == "simulated" for part in (*self.modules, self.cache) if part)

    def same_as(self, other: Identity) -> bool:
        """Whether both are the same bytes: weights, configuration and tokenizer, computed in the same way."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("weights_sha256", "config_sha256", "tokenizer_sha256", "dtype", "device", "attention", "cache")
        ) and [m.activations for m in self.modules] == [m.activations for m in other.modules]


class ArtifactFile(Record):
    """One file of what would be shipped; name: its path inside the folder."""

    name: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: str


class Artifact(Record):
    """What would be shipped of a variant.

    ``saved``: the files that this run wrote into the folder ``artifact`` beside run.json. ``checkpoint``: those that
    the variant was loaded from, with no step on top.
    """

    kind: Literal["saved", "checkpoint"]
    files: tuple[ArtifactFile, ...]

    @property
    def bytes(self) -> int:
        """All files together."""
        return sum(file.bytes for file in self.files)


class Note(Record):
    """Something a reader must know beside the numbers: the same model on both sides, documents cut, a floor."""

    topic: str
    text: str
    level: Literal["info", "warn"] = "info"


class Environment(Record):
    """Where and with what the run was made. Nothing in it changes between two identical runs on one machine."""

    harness: str
    python: str
    platform: str
    processor: str
    threads: int
    packages: dict[str, str]


class Clock(Record):
    """The only part of a run, beside latency measurements, that differs between two identical runs.

    seconds: by stage, of this variant and of what it shares with others. others: those of other variants checked by the
    same process. elapsed: from the start of the process to the verdict; None where it is not known, as in files of
    earlier versions. outputs: for writing the outputs, which were made before it was known, so that they do not show
    it. checks: how many checks were started in this folder, this one included; 0 where that is not known.
    """

    started: str
    finished: str
    seconds: dict[str, float]
    others: float = 0.0
    elapsed: float | None = None
    outputs: float | None = None
    checks: Annotated[int, Field(ge=0)] = 0

    @property
    def unexplained(self) -> float | None:
        """Seconds until the verdict that no stage of any variant explains; None where it is not known."""
        return None if self.elapsed is None else max(0.0, self.elapsed - self.others - sum(self.seconds.values()))


class Run(Record):
    """The content of run.json: the whole truth about one variant. Every other output is made from it and the tables."""

    schema_version: Literal[2] = 2
    name: str
    data_key: str
    """Hash of everything the tables depend on; tables with another key are never used."""
    verdict: Literal["pass", "fail", "inconclusive", "error"]
    exit_code: Literal[0, 1, 2, 3]
    failure: FailureClass | None = None
    """The class of failure of the blocking rule that decided the verdict; None for a pass."""
    asked: dict[str, Any]
    reference: Identity
    variant: Identity
    environment: Environment
    clock: Clock
    metrics: tuple[Metric, ...] = ()
    """What the measures of the run declare of their metrics, so that a report needs none of them."""
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...]
    slices: tuple[Slice, ...] = ()
    stops: tuple[Stop, ...] = ()
    verdicts: tuple[Verdict, ...]
    notes: tuple[Note, ...] = ()
    warnings: Annotated[int, Field(ge=0)] = 0
    """How many of the notes are warnings: what a verdict must not be read without."""
    artifact: Artifact | None = None
    """What would be shipped, where a suite measured it."""
    comparison: Comparison | None = None
    """What users of both sides load beside weights, and how it differs."""
    selected: str = ""
    """The variant that was selected where the file asks for one of its variants (``select``); empty: all count."""

    @property
    def warning_notes(self) -> tuple[Note, ...]:
        """The notes of level warn, in their order."""
        return tuple(note for note in self.notes if note.level == "warn")

    def metric(self, name: str) -> Metric:
        """What is known of a metric; of one that nothing declares, only what its first measurement tells."""
        metric = find_metric(name, self.metrics)
        if metric is None:
            m = next((each for each in self.measurements if each.name == name), None)
            metric = Metric(name=name, unit=m.unit if m else "", better=m.better if m else "neither")
        return metric
