"""The record of a model as loaded from its files, before the finished model is verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.models.fingerprints import FileFingerprint
from harness.models.weight_files import UnreadTensor
from harness.modules.file_dtypes import FileTensor
from harness.records import ModuleFormat, Note


@dataclass(frozen=True)
class UncheckedModel:
    """A model of transformers with its tokenizer and the fingerprints of its files.

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
