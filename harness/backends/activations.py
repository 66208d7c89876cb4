"""Activation quantization: rounds the inputs of linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.backends import Compressed
from harness.backends._common.linears import LinearBackend
from harness.backends._common.weights import DEFAULT_PERCENTILE, RangeMethod, name_module_in_errors
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

    Weights stay unchanged: combine this step with one that compresses them, and place it after steps that move
    activation ranges. Dynamic ranges are computed per call: with granularity ``tensor`` (and for the second-level scale
    of ``nvfp4``) they depend on everything computed in the same call, padding included. Static ranges come from the
    calibration documents; values beyond them saturate. Products are computed in floats (the kernel is simulated).
    Integer formats after Jacob et al. 2018 (arXiv 1712.05877), one scale per token after Yao et al. 2022 (ZeroQuant,
    arXiv 2206.01861).
    """

    quantizes = ("activations",)
    writes_in_place = False

    format: InputFormatName = "int"
    """``int`` (with ``bits``), an FP8 float, or a block format that brings its own groups of neighbouring
    channels and their scales (``mxfp4``, ``mxfp8_…``: 32 and powers of two; ``nvfp4``: 16 and FP8)."""
    bits: Bits | None = None
    """Bits per code; required with format ``int``, not allowed with others."""
    symmetric: bool = True
    """true: codes around 0 without a zero point; false: the grid spans the smallest to the largest value, and 0."""
    granularity: Literal["tensor", "token"] = "token"
    """The values that share a scale: the whole input, or the vector of one token."""
    dynamic: bool = True
    """true: compute the range of every input anew; false: once, from the calibration documents (granularity ``tensor``
    only)."""
    range: RangeMethod = "min_max"
    """Method that sets a static range."""
    percentile: Annotated[float, Field(gt=50, le=100, examples=[99.9])] | None = None
    """Percentage of values inside the range, default 99.9; only with range ``percentile``."""

    @model_validator(mode="after")
    def _check_settings(self) -> Activations:
        if (self.format == "int") != (self.bits is not None):
            raise ValueError("bits belongs to format: int, and only to it; the other formats have their own")
        if self.format != "int" and not self.symmetric:
            raise ValueError(f"symmetric: false needs format: int; {self.format} has no zero point")
        if self._in_groups and (self.granularity != "token" or not self.dynamic):
            raise ValueError(f"{self.format} brings its own groups with dynamic scales; leave out granularity, dynamic")
        if not self.dynamic and self.granularity != "tensor":
            raise ValueError(
                "dynamic: false needs granularity: tensor; the scale of a future token is not known in advance"
            )
        if self.dynamic and self.range != "min_max":
            raise ValueError(f"range: {self.range} needs dynamic: false; dynamic ranges are the minimum and maximum")
        if self.percentile is not None and self.range != "percentile":
            raise ValueError("percentile needs range: percentile")
        return self

    @property
    def calibrates(self) -> bool:
        """Static ranges need calibration documents."""
        return not self.dynamic

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Make every linear layer that is not skipped round its inputs; raises BackendError naming the module."""
        from harness.modules.activations import round_inputs

        chosen, form = self.select_layers(model), self.input_format()
        limits = {} if self.dynamic else self._calibrate(model, chosen, form, calibration)
        for name, module in chosen:
            round_inputs(module, form, limits.get(name), module.weight.device)
        return Compressed(model, activations=dict.fromkeys((name for name, _ in chosen), self.number_format()))

    def number_format(self) -> NumberFormat:
        """The input format that the settings describe. Loads no torch."""
        fields: dict[str, Any] = {"symmetric": self.symmetric, "dynamic": self.dynamic}
        if not self.dynamic:
            percentile = (self.percentile or DEFAULT_PERCENTILE) if self.range == "percentile" else None
            fields |= {"ranges": self.range, "percentile": percentile}
        if not self._in_groups:
            fields["granularity"] = self.granularity
        return named_formats()[self.format].record(self.bits, **fields)

    def input_format(self) -> Format:
        """The quantizer of that format."""
        from harness.numerics.formats import format_of

        return format_of(self.number_format())

    def _calibrate(
        self, model: PreTrainedModel, chosen: Sequence[tuple[str, Linear]], form: Format, calibration: Sequence[Tensor]
    ) -> dict[str, Limits]:
        """Compute the range of every input over all documents, in one pass that stores no inputs."""
        from harness.modules.decoder_layers import observe_inputs
        from harness.numerics.observers import make_observer

        percentile = self.percentile or DEFAULT_PERCENTILE
        seen = {name: make_observer(self.range, percentile, form.blocks) for name, _ in chosen}
        observe_inputs(model, {name: self._tap(name, each) for name, each in seen.items()}, calibration)
        limits = {}
        for name, each in seen.items():
            with name_module_in_errors(self, f"the input of {name}"):
                limits[name] = each.limits(form)
        return limits

    def _tap(self, name: str, seen: Observer) -> Tap:
        def tap(x_NI: Tensor) -> None:
            with name_module_in_errors(self, f"the input of {name}"):
                seen.add(x_NI)

        return tap

    @property
    def _in_groups(self) -> bool:
        return named_formats()[self.format].group_size is not None
