"""What was asked for: the resolved content of variant, suite and gate files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.records.base import Entry

Dtype = Literal["float32", "float16", "bfloat16"]
AskedDtype = Literal["auto", "float32", "float16", "bfloat16"]
"""``auto``: that of the checkpoint, by its config.json, else by its weight files."""
Side = Literal["reference", "variant"]
Positive = Annotated[int, Field(gt=0)]
Bos = bool | Literal["auto"]
"""Whether texts begin with BOS; ``auto``: as the reference's tokenizer itself writes it before a text."""
GGUF = ".gguf"
"""How the names of GGUF files end."""
OWN = "own"
"""As the documents of a suite: those that the variant file names."""
Sequential = Literal["betting", "group_sequential"]
"""How a number that is looked at several times keeps its confidence: see the files of these names in statistics."""
Served = Literal["weights", "hooks", "generation", "cache"]
"""What measures ask of a model beyond its logits; which of it a model gives, its engine and its steps declare."""
SERVED: dict[Served, str] = {
    "weights": "the weights of its modules",
    "hooks": "the inputs and outputs of its modules",
    "generation": "generated texts",
    "cache": "a key-value cache",
}
"""In words."""
FEWEST = 20
"""Documents at the first look of a suite that stops when its rules are decided: a variance of fewer is a guess."""


class ModelSpec(Entry):
    """One model to load."""

    model: str = Field(min_length=1, examples=["./my-model"])
    """pocket (embedded), a local folder or GGUF file, or a hub id (owner/name)."""
    file: str | None = Field(default=None, examples=["model-Q4_K_M.gguf"])
    """The GGUF file to take from a folder or a repository of the hub."""
    revision: str | None = Field(default=None, examples=["main"])
    """Branch, tag or commit of a model on the hub."""
    dtype: AskedDtype = "auto"
    """Number type in which both models are computed; auto: that of the checkpoint (config.json, else its weights)."""
    device: str = "cpu"
    """Where both models run: cpu, cuda, cuda:<number>, mps or xpu."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Implementation of attention; flash attention needs 16-bit numbers on a GPU."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run; on the hub it needs the commit as revision."""


class DocumentsSpec(Entry):
    """Which texts are scored, and how they become token ids.

    Objects and rows may have an ``id``, and a ``kind`` and a ``language`` by which rules can slice.
    Each document is scored alone: BOS (if ``bos``; with ``auto`` if the reference's tokenizer puts one before texts) +
    its tokens, cut at ``context`` tokens, no EOS; with ``packed`` the token streams are joined (each document opening
    with BOS, or not, in the same way) and cut into windows of ``context``.

    With ``min`` the first ``max`` documents are drawn in a random order, which ``seed`` fixes, and no more of them than
    the rules need: looked at are ``min`` of them, then more, until every rule that waits for them is decided.
    """

    data: str | HubData = Field(examples=["./texts.jsonl"])
    """A shipped name (pocket-train, pocket-calibration, pocket-heldout), in a suite also own (the documents of the
    variant file, whose settings take the place of these), a path ending in .jsonl (one JSON object a
    line) or .txt, or a dataset on the hub."""
    min: Annotated[int, Field(ge=FEWEST, examples=[40])] | None = None
    """Documents at the first look, where they are drawn until the rules are decided; needs max."""
    max: Annotated[int, Field(gt=0, examples=[200])] | None = None
    """Most documents that are scored; null: all of them."""
    context: Annotated[int, Field(ge=2)] = 512
    """Tokens at which a document is cut, BOS included."""
    bos: Bos = True
    """Whether texts begin with BOS; auto: as the tokenizer of the reference itself writes it."""
    packed: bool = False
    """Whether the token streams are joined and cut into windows of context."""
    text_field: str = "text"
    """Field of a .jsonl file or hub dataset that holds the text."""
    split_on: str = "\n\n"
    """What separates the documents of a .txt file."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Fixes the random order of documents that are drawn, and which the embedded model's splits hold."""


class HubData(Entry):
    """A dataset on the hub, by name, configuration and split."""

    hub: str = Field(examples=["owner/dataset"])
    """Its id on the hub."""
    config: str | None = Field(default=None, examples=["default"])
    """Its configuration; null where it has only one."""
    split: str = Field(examples=["test"])
    """Its split."""
    revision: str | None = Field(default=None, examples=["main"])
    """Branch, tag or commit."""


class CalibrationSpec(Entry):
    """Documents that backends may look at while they compress."""

    data: str | HubData = Field(examples=["./calibration.jsonl"])
    """As for the documents of a suite, but not the same texts."""
    documents: Positive = 64
    """How many, from the beginning of their source."""
    tokens: Annotated[int, Field(ge=2)] = 256
    """Tokens at which each is cut, BOS included."""
    bos: Bos = True
    """Whether texts begin with BOS; auto: as the tokenizer of the reference itself writes it."""
    text_field: str = "text"
    """Field of a .jsonl file or hub dataset that holds the text."""
    split_on: str = "\n\n"
    """What separates the documents of a .txt file."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Fixes what the embedded model's splits hold."""


class TrainingSpec(Entry):
    """Texts on which steps train the variant, and for how long."""

    data: str | HubData = Field(examples=["./training.jsonl"])
    """As for the documents of a suite, but not the same texts."""
    documents: Positive = 256
    """How many are trained on, from the beginning of their source."""
    held_out: Positive = 16
    """How many after those are left out of the training, to evaluate it."""
    tokens: Annotated[int, Field(ge=2)] = 256
    """Tokens at which each is cut, BOS included."""
    steps: Annotated[int, Field(ge=0, examples=[300])] | None = None
    """Optimizer steps; in place of epochs."""
    epochs: Annotated[int, Field(ge=0, examples=[3])] | None = None
    """How often every document is trained on; in place of steps."""
    bos: Bos = True
    """Whether texts begin with BOS; auto: as the tokenizer of the reference itself writes it."""
    text_field: str = "text"
    """Field of a .jsonl file or hub dataset that holds the text."""
    prompt_field: str | None = Field(default=None, examples=["prompt"])
    """Field of a .jsonl file or hub dataset with a prompt that comes right before each text. The model reads it, and
    learns to write the text alone; null: there is none, and every token is learned."""
    split_on: str = "\n\n"
    """What separates the documents of a .txt file."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Fixes the order of the texts, and what the embedded model's splits hold."""

    @model_validator(mode="after")
    def _lasts(self) -> TrainingSpec:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("steps or epochs says how long to train, and only one of them")
        if not (self.steps or self.epochs):
            raise ValueError("a training of 0 steps changes nothing; write for example steps: 300")
        return self


class ItemsSpec(Entry):
    """How many items of each task are scored: no more of them than the rules need.

    The items of a task are drawn in a random order, which ``seed`` fixes. Looked at are ``min`` of them, then more, up
    to ``max``, until every rule is decided that waits for the task.
    """

    min: Annotated[int, Field(ge=FEWEST, examples=[200])]
    """Items of each task at the first look."""
    max: Annotated[int, Field(gt=0, examples=[2000])]
    """Most items of each task that are scored."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Fixes the random order of the items."""
    passage: str | None = Field(default=None, examples=["context"])
    """Field of the data that holds the passage of an item: items of one passage are one cluster. Default: only equal
    items are."""
    after_failure: Literal["stop", "continue"] = "stop"
    """Whether further items are drawn once a blocking rule on the suite's documents or tasks has failed. Nothing makes
    the variant pass then; ``continue`` decides the other rules too."""

    @model_validator(mode="after")
    def _grows(self) -> ItemsSpec:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}; the looks are planned between them")
        return self


class TaskSettings(Entry):
    """Which lm-eval tasks are scored and how: the settings that the measure and the probe of tasks share."""

    tasks: tuple[str, ...] = Field(min_length=1, examples=[["hellaswag"]])
    """lm-eval tasks or groups: bundled, custom or standard, or the path of a task file (./my_task.yaml)"""
    limit: Positive | None = Field(default=None, examples=[200])
    """maximum number of documents per task, the first ones; default: all"""
    items: ItemsSpec | None = Field(default=None, examples=[{"min": 200, "max": 2000}])
    """items of each task in a random order, and no more of them than the rules need; default: all, or limit of them"""
    include: tuple[str, ...] = Field(default=(), examples=[["./tasks"]])
    """folders with custom lm-eval task files, or such files"""
    fewshot: Annotated[int, Field(ge=0, examples=[5])] | None = None
    """few-shot examples per prompt; default: as in the task file"""
    batch_size: Positive = 16
    """batch size: prompts per batch, on both sides"""
    bos: Bos = True
    """prompts begin with BOS if the tokenizer has one; auto: if the reference's puts it"""

    @model_validator(mode="after")
    def _counts_once(self) -> TaskSettings:
        if self.limit is not None and self.items is not None:
            raise ValueError("limit or items says how many items are scored, and only one of them; leave limit out")
        return self


Condition = Literal["batch_size", "padding_side", "document_order", "attention", "rounding"]
"""What is computed otherwise while everything that is asked stays the same (see harness/lockstep/noise_floor.py)."""


class NoiseFloorSpec(Entry):
    """Measures the reference against itself, on some documents, under each of these conditions."""

    conditions: tuple[Condition, ...] = Field(min_length=1, examples=[["batch_size", "padding_side"]])
    """What is computed otherwise."""
    documents: Positive = 16
    """Documents on which it is measured, from the beginning of the suite's."""


class RunSpec(Entry):
    """Where a check runs: on the workers of a Ray cluster. No number depends on it, so it is not in run.json."""

    ray: str = Field(min_length=1, examples=["auto"])
    """auto (the cluster that this machine belongs to), local (workers on this machine alone), or the address of a
    cluster, such as 10.0.0.1:6379."""
    workers: Annotated[Positive, Field(examples=[8])] | None = None
    """Processes that open the models; null: as many as the cluster has room for."""
    cpus_per_worker: Positive = 1
    """Processor cores, and threads, of a worker."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs of a worker; a fraction shares one."""
    memory_per_worker: Annotated[float, Field(gt=0, examples=[24.0])] | None = None
    """Gigabytes of memory of a worker; null: what the forecast says."""
    wait: Annotated[float, Field(gt=0)] = 300.0
    """Seconds without any worker after which the check ends with an error."""
    quiet: str | None = Field(default=None, min_length=1, examples=["quiet"])
    """Name of a Ray resource that a node has on which nothing but times are measured (latency)."""


DocumentsSpec.model_rebuild()
