"""Quantization of what goes into linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.backends import Compressed
from harness.backends._common.linears import LinearBackend
from harness.backends._common.weights import DEFAULT_PERCENTILE, RangeMethod, naming
from harness.numerics.named_formats import Bits, InputFormatName, named_formats
from harness.records import NumberFormat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.decoder_layers import Tap
    from harness.modules.linears import Linear
    from harness.numerics.formats import Format
    from harness.numerics.observers import Observer
    from harness.numerics.ranges import Limits


class Activations(LinearBackend):
    """Rounds the inputs of linear layers to a number format, with dynamic or calibrated ranges.

    Weights stay as they are: this step goes with any that compresses them, and belongs after those that move
    the ranges of activations. Dynamic ranges are those of every call: with granularity ``tensor`` (and for the scale
    of the scales of ``nvfp4``) they depend on all that is computed together, padding too. Static ranges are those of
    the calibration documents; what lies beyond them saturates. Products are computed in floats (the kernel is
    simulated). Integer formats after Jacob et al. 2018 (arXiv 1712.05877), a scale for every token after Yao et al.
    2022 (ZeroQuant, arXiv 2206.01861).
    """

    quantizes = ("activations",)

    format: InputFormatName = "int"
    """``int`` (with ``bits``), an FP8 float, or a block format that brings its own groups of neighbouring
    channels and their scales (``mxfp4``, ``mxfp8_…``: 32 and powers of two; ``nvfp4``: 16 and FP8)."""
    bits: Bits | None = None
    """Bits of one code; only with format ``int``, which needs it."""
    symmetric: bool = True
    """Codes around 0 without a zero point; false: the range from the smallest to the largest value, with 0
    in it."""
    granularity: Literal["tensor", "token"] = "token"
    """What shares a scale: the whole input, or the vector of one token."""
    dynamic: bool = True
    """Take the range from every input anew; false: once, from the calibration documents, with granularity
    ``tensor``."""
    range: RangeMethod = "min_max"
    """How a static range is set."""
    percentile: Annotated[float, Field(gt=50, le=100)] | None = None
    """Share of the values inside the range in percent, 99.9 if not given; only with range ``percentile``."""

    @model_validator(mode="after")
    def _consistent(self) -> Activations:
        if (self.format == "int") != (self.bits is not None):
            raise ValueError("bits belongs to format: int, and only to it; the other formats have their own")
        if self.format != "int" and not self.symmetric:
            raise ValueError(f"symmetric: false needs format: int; {self.format} has no zero point")
        if self._in_groups and (self.granularity != "token" or not self.dynamic):
            raise ValueError(f"{self.format} brings its own groups with dynamic scales; leave out granularity, dynamic")
        if not self.dynamic and self.granularity != "tensor":
            raise ValueError("dynamic: false needs granularity: tensor; tokens to come have no scale in advance")
        if self.dynamic and self.range != "min_max":
            raise ValueError(f"range: {self.range} needs dynamic: false; dynamic ranges are the minimum and maximum")
        if self.percentile is not None and self.range != "percentile":
            raise ValueError("percentile needs range: percentile")
        return self

    @property
    def calibrates(self) -> bool:
        """Static ranges are those of documents."""
        return not self.dynamic

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Let every linear layer that is not skipped round its inputs; raises BackendError naming the module."""
        from harness.modules.activations import round_inputs

        chosen, form = self.chosen(model), self.input_format()
        limits = {} if self.dynamic else self._calibrated(model, chosen, form, calibration)
        for name, module in chosen:
            round_inputs(module, form, limits.get(name), module.weight.device)
        return Compressed(model, activations=dict.fromkeys((name for name, _ in chosen), self.number_format()))

    def number_format(self) -> NumberFormat:
        """The format of inputs that the fields describe. Loads no torch."""
        fields: dict[str, Any] = {"symmetric": self.symmetric, "dynamic": self.dynamic}
        if not self.dynamic:
            percentile = (self.percentile or DEFAULT_PERCENTILE) if self.range == "percentile" else None
            fields |= {"ranges": self.range, "percentile": percentile}
        if not self._in_groups:
            fields["granularity"] = self.granularity
        return named_formats()[self.format].record(self.bits, **fields)

    def input_format(self) -> Format:
        """The same, as what rounds tensors."""
        from harness.numerics.formats import format_of

        return format_of(self.number_format())

    def _calibrated(
        self, model: PreTrainedModel, chosen: Sequence[tuple[str, Linear]], form: Format, calibration: Sequence[Tensor]
    ) -> dict[str, Limits]:
        """The range of every input over all documents, from one pass that keeps no inputs."""
        from harness.modules.decoder_layers import observe_inputs
        from harness.numerics.observers import make_observer

        percentile = self.percentile or DEFAULT_PERCENTILE
        seen = {name: make_observer(self.range, percentile, form.blocks) for name, _ in chosen}
        observe_inputs(model, {name: self._tap(name, each) for name, each in seen.items()}, calibration)
        limits = {}
        for name, each in seen.items():
            with naming(self, f"the input of {name}"):
                limits[name] = each.limits(form)
        return limits

    def _tap(self, name: str, seen: Observer) -> Tap:
        def tap(x_NI: Tensor) -> None:
            with naming(self, f"the input of {name}"):
                seen.add(x_NI)

        return tap

    @property
    def _in_groups(self) -> bool:
        return named_formats()[self.format].group_size is not None
