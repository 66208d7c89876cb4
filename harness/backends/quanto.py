"""Quantization of linear layers with the library optimum-quanto."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.backends._common.library import LibraryBackend, uneven_groups
from harness.numerics.named_formats import named_formats
from harness.records import NumberFormat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear

NAMES = {
    "int8": "qint8",
    "int4": "qint4",
    "int2": "qint2",
    "fp8_e4m3": "qfloat8_e4m3fn",
    "fp8_e5m2": "qfloat8_e5m2",
}
"""The library's name of each format."""
FORMATS: Mapping[str, NumberFormat] = {
    **{f"int{bits}": named_formats()["int"].record(bits) for bits in (2, 4, 8)},
    **{name: named_formats()[name].record() for name in ("fp8_e4m3", "fp8_e5m2")},
}


class Quanto(LibraryBackend):
    """Quantizes with the library optimum-quanto: weights of 8, 4 or 2 bits or FP8, optionally calibrated inputs.

    8-bit weights have a symmetric scale per output channel. 4 and 2 bits have an offset that is not an integer code, so
    that 0 is not always represented, and groups: the largest of 128, 96, 64 and 32 that divides the inputs if these are
    more than 128, else the whole channel. Outputs of layers and norms stay in full precision.
    """

    requires = ("optimum.quanto",)
    extra = "quanto"

    weights: Literal["int8", "int4", "int2", "fp8_e4m3", "fp8_e5m2"]
    """Format of the weights."""
    group_size: Annotated[int, Field(ge=8, examples=[128])] | None = None
    """Inputs that share a scale; default: the library's choice. Only with int4 and int2."""
    activations: Literal["int8", "fp8_e4m3", "fp8_e5m2"] | None = None
    """Format of the inputs, with one static range from the calibration documents; not given: inputs are not
    quantized."""

    @model_validator(mode="after")
    def _check_settings(self) -> Quanto:
        if self.group_size is not None and not self._has_groups:
            raise ValueError(f"group_size needs weights: int4 or int2; {self.weights} has a scale per output channel")
        if self.activations is not None and self._has_groups:
            raise ValueError(f"activations needs weights of 8 bits; {self.weights} products are computed in floats")
        return self

    @property
    def calibrates(self) -> bool:
        """Ranges of inputs need calibration documents."""
        return self.activations is not None

    def number_format(self, module: Linear) -> NumberFormat:
        """The group size that the library will choose, unless one is given."""
        if not self._has_groups:
            return FORMATS[self.weights].model_copy(update={"granularity": "channel", "ranges": "min_max"})
        inputs = module.weight.shape[1]
        fitting = [size for size in (128, 96, 64, 32) if inputs > 128 and inputs % size == 0]
        size = self.group_size or (fitting[0] if fitting else None)
        sharing = {"granularity": "group" if size else "channel", "group_size": size, "symmetric": False}
        return FORMATS[self.weights].model_copy(update={**sharing, "ranges": "min_max"})

    def inputs(self) -> NumberFormat | None:
        """One static range per input."""
        if self.activations is None:
            return None
        static = {"granularity": "tensor", "dynamic": False, "ranges": "min_max"}
        return FORMATS[self.activations].model_copy(update=static)

    def check(self, module: Linear) -> str:
        """Groups must divide the inputs."""
        return uneven_groups(module, self.group_size)

    def hand_over(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
    ) -> PreTrainedModel:
        """Replace the layers, run the calibration documents if inputs are quantized, and freeze: before that weights
        are floats."""
        import torch
        from optimum.quanto import Calibration

        model = self.replace_each(model, names, self._replace)
        if self.activations:
            with torch.no_grad(), Calibration(momentum=0.9, streamline=False):
                for ids in calibration:
                    model(input_ids=ids[None].to(model.device), use_cache=False)
        return self.replace_each(model, names, _freeze)

    def _replace(self, old: Any) -> Any:
        from optimum.quanto import qtypes
        from optimum.quanto.nn import quantize_module

        activations = qtypes[NAMES[self.activations]] if self.activations else None
        new = quantize_module(old, weights=qtypes[NAMES[self.weights]], activations=activations)
        if self.group_size:
            new.weight_group_size = self.group_size
        # Outputs in the library's own type of tensor would be what the next layer, and every probe, gets to see.
        new.disable_output_quantization()
        return new

    @property
    def _has_groups(self) -> bool:
        return self.weights in ("int4", "int2")


def _freeze(module: Any) -> Any:
    module.eval()
    module.freeze()
    return module
