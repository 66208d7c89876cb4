"""A model that has been opened and verified, ready to be measured."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.data.calibration import Calibrated
from harness.models.fingerprints import FileStamp, verify_stamps
from harness.records import Identity, Note


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be measured: in eval mode, without gradients, with stamps of its files."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: Identity
    files: tuple[FileStamp, ...]
    notes: tuple[Note, ...] = ()
    calibration: Calibrated | None = None
    """What a variant was fitted to, where a step looked at documents."""


def verify_unchanged(loaded: LoadedModel) -> None:
    """Raise ModelError when a file that ``loaded`` was read from has changed since."""
    verify_stamps(loaded.files)


def freeze(model: nn.Module) -> None:
    """Evaluation mode, and no gradients."""
    model.eval()
    model.requires_grad_(False)
