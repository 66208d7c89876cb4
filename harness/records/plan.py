"""What was asked for: the resolved content of variant, suite and gate files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.records.base import Record

Dtype = Literal["float32", "float16", "bfloat16"]
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


class DocumentsSpec(Record):
    """Which texts are scored, and how they become token ids.

    data: a shipped name (``pocket-train``, ``pocket-calibration``, ``pocket-heldout``), in a suite also ``own`` (the
    ``documents`` of the variant file, whose settings take the place of these), a path ending in .jsonl
    (one JSON object a line, text under ``text_field``) or .txt (``split_on`` separates documents), or a hub dataset.
    Objects and rows may have an ``id``, and a ``kind`` and a ``language`` by which rules can slice.
    Each document is scored alone: BOS (if ``bos``; with ``auto`` if the reference's tokenizer puts one before texts) +
    its tokens, cut at ``context`` tokens, no EOS; with ``packed`` the token streams are joined (each document opening
    with BOS, or not, in the same way) and cut into windows of ``context``.

    With ``min`` the first ``max`` documents are drawn in a random order, which ``seed`` fixes, and no more of them than
    the rules need: looked at are ``min`` of them, then more, until every rule that waits for them is decided.
    """

    data: str | HubData
    min: Annotated[int, Field(ge=FEWEST)] | None = None
    max: Positive | None = None
    context: Annotated[int, Field(ge=2)] = 512
    bos: Bos = True
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
    bos: Bos = True
    text_field: str = "text"
    split_on: str = "\n\n"
    seed: Annotated[int, Field(ge=0)] = 0


Condition = Literal["batch_size", "padding_side", "document_order", "attention", "rounding"]
"""What is computed otherwise while everything that is asked stays the same (see harness/lockstep/noise_floor.py)."""


class NoiseFloorSpec(Record):
    """Measures the reference against itself, on some documents, under each of these conditions."""

    conditions: tuple[Condition, ...] = Field(min_length=1)
    documents: Positive = 16


DocumentsSpec.model_rebuild()
