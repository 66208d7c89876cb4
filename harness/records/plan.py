"""What was asked for: the resolved content of variant, suite and gate files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from harness.records.base import Plugin, Record

Dtype = Literal["float32", "float16", "bfloat16"]
Positive = Annotated[int, Field(gt=0)]
GGUF = ".gguf"
"""How the names of GGUF files end."""
Sequential = Literal["betting", "group_sequential"]
"""How a number that is looked at several times keeps its confidence: see the files of these names in statistics."""
Served = Literal["hooks", "generation", "cache"]
"""What measures ask of a model beyond its logits: modules whose calls are heard, texts that it writes by itself, and
tokens that are read behind a cache of those before."""
FEWEST = 20
"""Documents at the first look of a suite that stops when its rules are decided: a variance of fewer is a guess."""


class ModelSpec(Record):
    """One model to load: ``pocket`` (embedded), a local folder or GGUF file, or a hub id with revision.

    file: the GGUF file to take from a folder or a repository of the hub.
    """

    model: str = Field(min_length=1)
    file: str | None = None
    revision: str | None = None
    dtype: Dtype = "float32"
    device: str = "cpu"
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    trust_remote_code: bool = False


class VariantSpec(Record):
    """The compressed side: a checkpoint (``model``) or the reference itself, then backend steps in order.

    file: the GGUF file to take from a folder or a repository of the hub. engine: what computes; ``llama_cpp`` runs a
    GGUF file with the kernels of llama.cpp, ``transformers`` dequantizes it. tokenizer: the checkpoint's own, or the
    reference's where the vocabulary is the same. adapter: the folder of a PEFT adapter; with ``merge`` it becomes part
    of the weights before the steps, else it is computed beside them on top of what the steps made (QLoRA).
    artifact: whether a variant that is made here is written as it would be shipped (``runs/<name>/artifact``), read
    back in a fresh process and compared with the model in memory; done where a suite has the measure ``artifact``. A
    checkpoint without steps is what would be shipped, so nothing is written.
    """

    model: str = Field(default="reference", min_length=1)
    file: str | None = None
    revision: str | None = None
    dtype: Dtype | None = None
    trust_remote_code: bool = False
    engine: Literal["transformers", "llama_cpp"] = "transformers"
    tokenizer: Literal["own", "reference"] = "own"
    adapter: str | None = None
    merge: bool = False
    compress: tuple[SerializeAsAny[Plugin], ...] = ()
    artifact: Literal["save", "none"] = "save"

    @property
    def is_gguf(self) -> bool:
        """Whether the checkpoint is a GGUF file, on this machine or on the hub."""
        return self.file is not None or self.model.endswith(GGUF)

    @property
    def made_here(self) -> bool:
        """Whether the variant exists only in memory: steps or a merged adapter made it from other files."""
        return bool(self.compress) or (self.adapter is not None and self.merge)


class DocumentsSpec(Record):
    """Which texts are scored, and how they become token ids.

    data: a shipped name (``pocket-train``, ``pocket-calibration``, ``pocket-heldout``), a path ending in .jsonl
    (one JSON object a line, text under ``text_field``) or .txt (``split_on`` separates documents), or a hub dataset.
    Objects and rows may have an ``id``, and a ``kind`` and a ``language`` by which rules can slice.
    Each document is scored alone: BOS (if ``bos``) + its tokens, cut at ``context`` tokens, no EOS; with ``packed``
    the token streams are joined (each document opening with BOS if ``bos``) and cut into windows of ``context``.

    With ``min`` the first ``max`` documents are drawn in a random order, which ``seed`` fixes, and no more of them than
    the rules need: looked at are ``min`` of them, then more, until every rule that waits for them is decided.
    """

    data: str | HubData
    min: Annotated[int, Field(ge=FEWEST)] | None = None
    max: Positive | None = None
    context: Annotated[int, Field(ge=2)] = 512
    bos: bool = True
    packed: bool = False
    text_field: str = "text"
    split_on: str = "\n\n"
    seed: Annotated[int, Field(ge=0)] = 0


class HubData(Record):
    """A dataset on the hub, by name, configuration and split."""

    hub: str
    config: str | None = None
    split: str
    revision: str | None = None


class CalibrationSpec(Record):
    """Documents that backends may look at while they compress: the first ``documents`` of their source.

    Each is BOS (if ``bos``) + its tokens, cut at ``tokens``.
    """

    data: str | HubData
    documents: Positive = 64
    tokens: Annotated[int, Field(ge=2)] = 256
    bos: bool = True
    text_field: str = "text"
    split_on: str = "\n\n"
    seed: Annotated[int, Field(ge=0)] = 0


Condition = Literal["batch_size", "padding_side", "document_order", "attention", "rounding"]
"""What is computed otherwise while everything that is asked stays the same (see harness/lockstep/noise_floor.py)."""


class NoiseFloorSpec(Record):
    """Measures the reference against itself, on some documents, under each of these conditions."""

    conditions: tuple[Condition, ...] = Field(min_length=1)
    documents: Positive = 16


class SuiteSpec(Record):
    """A named suite: documents, the measures wanted, and the probes (with merged settings) they need."""

    name: str
    source: str
    documents: DocumentsSpec | None = None
    measures: tuple[SerializeAsAny[Plugin], ...] = Field(min_length=1)
    probes: tuple[SerializeAsAny[Plugin], ...] = ()
    noise_floor: NoiseFloorSpec | None = None


class RuleSpec(Record):
    """One rule of a gate and where it is written (``file:line``)."""

    rule: SerializeAsAny[Plugin]
    where: str


class GateSpec(Record):
    """A named gate: its rules in file order. sequential: as its file has it, None where it takes the default."""

    name: str
    source: str
    sequential: Sequential | None = None
    rules: tuple[RuleSpec, ...] = Field(min_length=1)


class Plan(Record):
    """Everything one variant file asks for, checked before a model is loaded."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    source: str
    reference: ModelSpec
    variant: VariantSpec
    target: str | None = None
    """The hardware that the variant is meant for, by its name in the table of kernels."""
    calibration: CalibrationSpec | None = None
    suites: tuple[SuiteSpec, ...] = Field(min_length=1)
    gates: tuple[GateSpec, ...] = Field(min_length=1)


DocumentsSpec.model_rebuild()
