"""Backends compress a model. One file is one backend; its fields are its YAML.

Steps of ``variant.compress`` are applied in order, each on what the one before returned. A backend changes the model
it is given (always a copy of the reference or a freshly loaded checkpoint, never the reference itself) and says what it
did to each module it touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.records import ModuleFormat, Plugin

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Compressed:
    """The compressed model and the format of every module that the step changed."""

    model: PreTrainedModel
    modules: tuple[ModuleFormat, ...]


class Backend(Plugin):
    """One compression step."""

    needs_calibration: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ()
    """Import names of optional libraries; the plan checks that they are installed."""
    extra: ClassVar[str] = ""
    """The extra of this project that installs them."""

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Compress ``model`` in place or replace it.

        calibration: token ids, one 1-D int64 tensor a document; empty unless ``needs_calibration``.
        Raises BackendError naming backend and module for weights that cannot be compressed (non-finite, say).
        """
        raise NotImplementedError


BASE = Backend
