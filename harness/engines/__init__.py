"""Engines compute models. One file is one engine; its fields are its YAML.

``variant: {model: q4.gguf, engine: llama_cpp}`` names the engine; one with settings is written as a mapping,
``engine: {engine: name, setting: value}``. An engine declares what it reads and what can be asked of its models, so
that the plan refuses what cannot work and a measure that needs more is Skipped with the reason. The reference is always
computed by transformers.
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
"""What ``variant.model`` can be: a copy of the reference, a folder or repository of the hub, a GGUF file."""


class Engine(Plugin):
    """What computes a model."""

    family = "engines"

    reads: ClassVar[tuple[CheckpointKind, ...]] = ("folder",)
    """The kinds of checkpoints that it opens."""
    serves: ClassVar[tuple[Served, ...]] = ()
    """What can be asked of its models beside the logits of token ids, which all of them give; a measure that needs
    anything else is Skipped. ``weights``: steps, adapters and tensors; ``hooks``: modules whose calls are heard."""
    logits_dtype: ClassVar[Dtype | None] = None
    """The dtype of its logits where it computes in the formats of its files; None: it takes the declared dtype."""
    devices: ClassVar[tuple[str, ...]] = ()
    """The devices on which it computes (``cpu``); none named: that of the reference, whichever it is."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Import names of optional libraries; the plan checks that they are installed."""
    extra: ClassVar[str] = ""
    """The extra of this project that installs them."""
    install_note: ClassVar[str] = ""
    """What to know before installing them."""

    @abstractmethod
    def open(self, spec: ModelSpec, name: str, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
        """Open the checkpoint that ``spec`` names, verify it, and make it ready to be measured.

        tokenizer: taken instead of the checkpoint's own. Raises ModelError saying what was found and what to do, and
        MissingDependencyError for a library that is not installed.
        """


BASE = Engine
