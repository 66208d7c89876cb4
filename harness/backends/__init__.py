"""Backends compress a model. One file is one backend; its fields are its YAML.

Steps of ``variant.compress`` are applied in order, each on what the one before returned. A backend changes the model
it is given (always a copy of the reference or a freshly loaded checkpoint, never the reference itself) and says what it
did to each module it touched.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

from harness.records import CacheFormat, ModuleFormat, Note, NumberFormat, Plugin, Served

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Quantized: TypeAlias = Literal["weights", "activations", "cache"]
"""What a step can put on a grid."""
EVERYTHING: tuple[Served, ...] = get_args(Served)
"""All that a model of transformers can do."""


@dataclass(frozen=True)
class Compressed:
    """The compressed model and what the step did to it.

    modules: the format of every module whose weight it put on a grid. activations: by module name, the format to which
    the module's input is rounded from now on. cache: the format of the KV cache, if it changed. notes: what a reader
    must know beside that.
    """

    model: PreTrainedModel
    modules: tuple[ModuleFormat, ...] = ()
    activations: Mapping[str, NumberFormat] = field(default_factory=dict)
    cache: CacheFormat | None = None
    notes: tuple[Note, ...] = ()


class Backend(Plugin):
    """One compression step."""

    family = "backends"

    quantizes: ClassVar[tuple[Quantized, ...]] = ()
    """What the step puts on a grid, whatever its settings; what counts is ``puts_on_grid``."""
    needs_calibration: ClassVar[bool] = False
    """Whether it looks at documents, whatever its settings; what counts is ``calibrates``."""
    serves: ClassVar[tuple[Served, ...]] = EVERYTHING
    """What its models can do beside giving logits; a measure that needs anything else is skipped, with that reason."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Import names of optional libraries; the plan checks that they are installed."""
    extra: ClassVar[str] = ""
    """The extra of this project that installs them."""

    @property
    def puts_on_grid(self) -> tuple[Quantized, ...]:
        """What the step puts on a grid with these settings; the plan refuses combinations that make no sense."""
        return self.quantizes

    @property
    def calibrates(self) -> bool:
        """Whether it looks at documents with these settings."""
        return self.needs_calibration

    def lacks(self) -> str:
        """What the step needs with these settings, beside ``requires``, and does not find here, with what to do; empty:
        nothing. The plan asks, so no model library is loaded for the answer."""
        return ""

    @abstractmethod
    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Compress ``model`` in place or replace it.

        calibration: token ids, one 1-D int64 tensor a document; empty unless the step ``calibrates``.
        Raises BackendError naming backend and module for weights that cannot be compressed (non-finite, say).
        """

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write weights and configuration of a model that this step made into an empty folder, as it would be shipped.

        By default what transformers writes. A backend whose library ships in another way overrides it; of several steps
        the last one that does is asked. The tokenizer is written beside it. Whatever is raised becomes a BackendError.
        """
        model.save_pretrained(folder)


BASE = Backend
