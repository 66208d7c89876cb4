"""Engines: what loads a checkpoint and computes its logits. One file is one engine; its fields are its YAML settings.

``variant: {model: q4.gguf, engine: llama_cpp}`` names the engine; settings are given with a mapping,
``engine: {engine: name, setting: value}``. An engine declares which checkpoints it reads and what its models support,
so that the plan refuses what cannot work and a measure that needs more is Skipped with the reason. The reference is
always computed by transformers.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from harness.records import ModelSpec, Plugin, Served
from harness.records.plan import Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.models.loaded import LoadedModel

CheckpointKind: TypeAlias = Literal["reference", "folder", "gguf"]
"""The kinds of ``variant.model``: a copy of the reference, a folder or hub repository, a GGUF file."""


class Engine(Plugin):
    """Loads checkpoints and computes their logits."""

    family = "engines"
    by_name = True

    reads: ClassVar[tuple[CheckpointKind, ...]] = ("folder",)
    """The kinds of checkpoints that it opens."""
    serves: ClassVar[tuple[Served, ...]] = ()
    """What its models support beyond logits of token ids; a measure that needs anything else is Skipped. ``weights``:
    steps, adapters and access to tensors; ``hooks``: observing module calls."""
    logits_dtype: ClassVar[Dtype | None] = None
    """Dtype of its logits if it computes in the formats of its files; None: it uses the declared dtype."""
    devices: ClassVar[tuple[str, ...]] = ()
    """Device types on which it computes (``cpu``); empty: the reference's device."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Import names of required optional libraries; the plan checks that they are installed."""
    extra: ClassVar[str] = ""
    """The pip extra of this project that installs the required libraries."""
    install_note: ClassVar[str] = ""
    """A remark about installing them."""

    @abstractmethod
    def open(self, spec: ModelSpec, name: str, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
        """Open the checkpoint that ``spec`` names, verify it, and prepare it for measuring.

        tokenizer: used instead of the checkpoint's own. Raises ModelError saying what was found and what to do, and
        MissingDependencyError for a library that is not installed.
        """


BASE = Engine
