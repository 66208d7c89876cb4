"""The records of a model: as loaded from its files, and as verified, ready to be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.data.calibration import Calibrated
from harness.data.training import Trained
from harness.errors import ModelError
from harness.models.fingerprints import FileFingerprint, verify_fingerprints
from harness.models.language_model import LanguageModel, TransformersModel
from harness.models.weight_files import UnreadTensor
from harness.modules.file_dtypes import FileTensor
from harness.modules.non_finite import NonFinite
from harness.records import Identity, ModuleFormat, Note


@dataclass(frozen=True)
class UncheckedModel:
    """A model of transformers with its tokenizer and the fingerprints of its files, before it is verified.

    formats: stored format by module, if memory does not show it; they take precedence over inspection. quantization:
    the ``quant_method`` of a prequantized checkpoint, else empty. attention: the implementation that it computes with.
    declared: its whole quantization config. unread: tensors of the files that the class leaves there. tensors: those of
    the files by name, where formats do not tell them already.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    files: tuple[FileFingerprint, ...]
    attention: str
    formats: Mapping[str, ModuleFormat] = field(default_factory=dict)
    quantization: str = ""
    notes: tuple[Note, ...] = ()
    declared: Mapping[str, Any] = field(default_factory=dict)
    unread: tuple[UnreadTensor, ...] = ()
    tensors: Mapping[str, FileTensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedModel:
    """A verified model with its tokenizer and the fingerprints of its files.

    language_model: computes the logits; a model of transformers is in evaluation mode and without gradients.
    """

    name: str
    language_model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    identity: Identity
    files: tuple[FileFingerprint, ...]
    notes: tuple[Note, ...] = ()
    calibration: Calibrated | None = None
    """The calibration of a variant, if a step used documents."""
    training: Trained | None = None
    """The training of a variant, if a step trained."""
    quantization: Mapping[str, Any] = field(default_factory=dict)
    """The quantization config of its files; empty if they have none."""
    non_finite: tuple[NonFinite, ...] = ()
    """Its tensors that hold NaN or infinity."""
    unread: tuple[UnreadTensor, ...] = ()
    """Tensors of its files that its class leaves there."""
    retrained: frozenset[str] = frozenset()
    """Modules whose weights an adapter changed before any step."""
    adapter: Path | None = None
    """Folder of the adapter that is attached to its weights, and would be shipped beside them."""
    layers: tuple[int | None, ...] | None = None
    """Of every decoder layer of a variant: the layer of the reference that it stands for (see VariantSpec)."""

    @property
    def model(self) -> PreTrainedModel:
        """Its modules and tensors. Raises ModelError if its engine gives no access to them."""
        modules = self.language_model.modules
        if modules is None:
            raise ModelError(f"{self.name}: its engine gives no access to modules and weights")
        return modules

    def with_modules(self, name: str, model: PreTrainedModel) -> LoadedModel:
        """The same entry under another name, with other modules."""
        return replace(self, name=name, language_model=TransformersModel(model))


def verify_unchanged(loaded: LoadedModel) -> None:
    """Raise ModelError if a file from which ``loaded`` was read has changed since."""
    verify_fingerprints(loaded.files)


def freeze(model: nn.Module) -> None:
    """Switch to evaluation mode and disable gradients."""
    model.eval()
    model.requires_grad_(False)
