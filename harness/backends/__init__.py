"""Backends: the compression steps of a variant. One file is one backend; its fields are its YAML settings.

The steps of ``variant.compress`` run in order, each on the model that the step before returned. A backend may change
the model it is given in place (a copy of the reference or a freshly loaded checkpoint, never the reference itself) and
returns the number format of every module it changed.
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

    from harness.training.data import Training


Quantized: TypeAlias = Literal["weights", "activations", "cache"]
"""What a compression step can quantize."""
EVERYTHING: tuple[Served, ...] = get_args(Served)
"""Every capability of a model loaded with transformers."""


@dataclass(frozen=True)
class Compressed:
    """The compressed model and a description of what the step changed.

    modules: the format of every module whose weight was quantized. activations: by module name, the format to which the
    module's input is rounded from this step on. cache: the format of the KV cache, if it changed. notes: anything else
    the reader of the report must know. layers: the decoder layers of the given model that are left, if the step took
    some away. remade: whether the model has other parameters than the given one. adapter: folder of a peft adapter of
    the model, which is attached once all steps are done.
    """

    model: PreTrainedModel
    modules: tuple[ModuleFormat, ...] = ()
    activations: Mapping[str, NumberFormat] = field(default_factory=dict)
    cache: CacheFormat | None = None
    notes: tuple[Note, ...] = ()
    layers: tuple[int, ...] | None = None
    remade: bool = False
    adapter: Path | None = None


@dataclass(frozen=True)
class Materials:
    """What the steps of a variant may look at.

    calibration: token ids, one 1-D int64 tensor per document. training: texts, teacher and settings of steps that
    train; None unless one of them does.
    """

    calibration: Sequence[Tensor] = ()
    training: Training | None = None


class Backend(Plugin):
    """One compression step of a variant."""

    family = "backends"

    quantizes: ClassVar[tuple[Quantized, ...]] = ()
    """What the step quantizes, whatever its settings; ``puts_on_grid`` takes the settings into account."""
    needs_calibration: ClassVar[bool] = False
    """Whether the step needs calibration documents, whatever its settings; ``calibrates`` takes the settings into
    account."""
    trains: ClassVar[bool] = False
    """Whether the step trains the model on texts (see ``harness/training``)."""
    writes_in_place: ClassVar[bool] = True
    """Whether the step may write into the parameters of the model that it is given. False: it gives modules parameters
    of their own, except for stacked experts, so that the reference lends it the others instead of copying them."""
    serves: ClassVar[tuple[Served, ...]] = EVERYTHING
    """What the compressed model supports beyond computing logits; a measure that needs anything else is skipped with
    that reason."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Import names of optional libraries that the step needs, whatever its settings; ``libraries`` takes the settings
    into account."""
    extra: ClassVar[str] = ""
    """The pip extra of this project that installs the required libraries."""

    @property
    def puts_on_grid(self) -> tuple[Quantized, ...]:
        """What the step quantizes with these settings; the plan refuses contradictory combinations."""
        return self.quantizes

    @property
    def calibrates(self) -> bool:
        """Whether the step needs calibration documents with these settings."""
        return self.needs_calibration

    @property
    def reads_tokens(self) -> bool:
        """Whether the step runs the model on documents that the reference's tokenizer encoded, so that the model must
        have the same one."""
        return self.calibrates or self.trains

    @property
    def leaves_adapter(self) -> bool:
        """Whether the step leaves an adapter beside the weights with these settings (``Compressed.adapter``)."""
        return False

    @property
    def libraries(self) -> tuple[str, ...]:
        """Import names of the optional libraries that the step needs with these settings; the plan checks that they are
        installed, and the run notes their versions."""
        return self.requires

    def lacks(self) -> str:
        """What is missing on this machine to run the step with these settings, apart from ``libraries``, and how to
        provide it; empty if nothing is missing. Called while planning, so it must not import a model library."""
        return ""

    @abstractmethod
    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Compress ``model`` in place or return another one.

        calibration: token ids, one 1-D int64 tensor per document; empty unless the step ``calibrates``. Raises
        BackendError naming backend and module for weights that cannot be compressed (non-finite, for example).
        """

    def apply(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, materials: Materials) -> Compressed:
        """Apply the step with what it needs of ``materials``: by default ``compress`` with the calibration
        documents."""
        return self.compress(model, tokenizer, materials.calibration if self.calibrates else ())

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the weights and configuration of the compressed model into an empty folder, as it would be released.

        By default transformers' ``save_pretrained``. Override it if the library has its own checkpoint format; if
        several steps do, the last one saves. The tokenizer is saved separately. Any exception becomes a BackendError.
        """
        model.save_pretrained(folder)


BASE = Backend
