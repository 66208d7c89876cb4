"""Base class of backends that quantize weights: the YAML settings of the format, overrides per module, descriptions."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.backends import Backend
from harness.backends._common.linears import LinearBackend
from harness.errors import BackendError
from harness.numerics.named_formats import Bits, NamedFormat, WeightFormatName, named_formats
from harness.records import Entry, ModuleFormat, NumberFormat

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel

    from harness.modules.linears import Linear
    from harness.numerics.formats import Format, Quantized
    from harness.numerics.ranges import Limits

DEFAULT_PERCENTILE = 99.9
Granularity = Literal["tensor", "channel", "group", "block"]
RangeMethod = Literal["min_max", "percentile", "mse", "entropy"]


class Override(Entry):
    """Settings that replace the step's own for matching modules; those not given stay as they are."""

    modules: tuple[str, ...] = Field(min_length=1, examples=[["*.down_proj"]])
    """Patterns of module names, with * for any part."""
    format: WeightFormatName | None = Field(default=None, examples=["nf4"])
    """As for the step."""
    bits: Bits | None = None
    """As for the step."""
    symmetric: bool | None = None
    """As for the step."""
    granularity: Granularity | None = None
    """As for the step."""
    group_size: Annotated[int, Field(ge=1, examples=[128])] | None = None
    """As for the step."""
    full_range: bool | None = None
    """As for the step."""
    range: RangeMethod | None = None
    """As for the step."""


class WeightBackend(LinearBackend):
    """A backend that quantizes the weights of linear layers."""

    quantizes = ("weights",)
    takes_experts = True

    format: WeightFormatName = "int"
    """``int`` (with ``bits``), an FP8 or FP4 float, ``nf4``, a block format that brings its own group size and scales
    (``mxfp4``, ``mxfp8_…``: 32 and powers of two; ``nvfp4``: 16 and FP8), or another that ``harness list`` shows."""
    bits: Bits | None = None
    """Bits per code; required with format ``int``, not allowed with others."""
    symmetric: bool = True
    """true: codes around 0 without a zero point; false: the grid spans the smallest to the largest weight, and 0."""
    granularity: Granularity = "group"
    """The values that share a scale: the whole tensor, an output channel, ``group_size`` neighbours within an output
    channel, or a square block of ``group_size`` × ``group_size``."""
    group_size: Annotated[int, Field(ge=1, examples=[128])] | None = None
    """Inputs that share a scale; default 32 (64 for nf4, 128 for blocks); the last group of a channel may be shorter.
    Only with ``group`` and ``block``."""
    full_range: bool = False
    """Use codes from −2^(bits−1) instead of −2^(bits−1)+1; symmetric integers only."""
    range: RangeMethod = "min_max"
    """Method that sets the clipping range of the weights that share a scale."""
    percentile: Annotated[float, Field(gt=50, le=100, examples=[99.9])] | None = None
    """Percentage of values inside the range, default 99.9; only with range ``percentile``."""
    double_quantize: bool = False
    """Quantize the scales to 8 bits as well, as in QLoRA."""
    overrides: tuple[Override, ...] = ()
    """Settings for some modules that replace those above; if several match, the last one counts."""

    @model_validator(mode="after")
    def _check_settings(self) -> WeightBackend:
        if (self.format == "int") != (self.bits is not None):
            raise ValueError("bits belongs to format: int, and only to it; the other formats have their own")
        if self.group_size is not None and self.granularity not in ("group", "block"):
            raise ValueError(f"group_size needs granularity: group or block, not {self.granularity}")
        if self.full_range and not (self.symmetric and self.format == "int"):
            raise ValueError("full_range needs symmetric integers; asymmetric grids always use all codes")
        if self.format != "int" and not self.symmetric:
            raise ValueError(f"symmetric: false needs format: int; {self.format} has no zero point")
        own_blocks = self.granularity == "group" and self.group_size is None and not self.double_quantize
        if self._named_format.group_size is not None and not own_blocks:
            raise ValueError(
                f"{self.format} brings its own groups and scales; leave out granularity, group_size and double_quantize"
            )
        if self.percentile is not None and self.range != "percentile":
            raise ValueError("percentile needs range: percentile")
        return self

    @model_validator(mode="after")
    def _overrides_make_sense(self) -> WeightBackend:
        for override in self.overrides:
            self._with(override)
        return self

    def number_format(self) -> NumberFormat:
        """The weight format that the settings describe, without overrides. Loads no torch."""
        percentile = (self.percentile or DEFAULT_PERCENTILE) if self.range == "percentile" else None
        fields: dict[str, Any] = {"symmetric": self.symmetric, "ranges": self.range, "percentile": percentile}
        if self._named_format.group_size is None:
            fields |= {"granularity": self.granularity, "scales": "double" if self.double_quantize else "float"}
            if self.granularity in ("group", "block"):
                default = 128 if self.granularity == "block" else self._named_format.default_group
                fields["group_size"] = self.group_size or default
        return self._named_format.record(self.bits, **fields)

    def weight_format(self) -> Format:
        """The quantizer of that format."""
        from harness.numerics.formats import format_of

        return format_of(self.number_format(), self.full_range)

    def variations(self) -> tuple[WeightBackend, ...]:
        """These settings, and the settings that result from each override."""
        return (self, *map(self._with, self.overrides))

    def for_module(self, name: str) -> WeightBackend:
        """These settings with the overrides that match a module."""
        from harness.modules.experts import stack_name

        settings, name = self, stack_name(name)
        for override in self.overrides:
            if any(fnmatchcase(name, pattern) for pattern in override.modules):
                settings = settings._with(override)
        return settings

    def limits_of(self, weight_OI: Tensor, form: Format) -> Limits | None:
        """The limits that the grid of every block must span, by ``range``; None: its smallest and largest value."""
        from harness.numerics.range_methods import find_limits

        return find_limits(weight_OI, form, self.range, self.percentile or DEFAULT_PERCENTILE)

    def round_weight(self, weight_OI: Tensor) -> Quantized:
        """A weight rounded to nearest in the format of these settings, without overrides."""
        from harness.numerics.formats import quantize

        form = self.weight_format()
        return quantize(weight_OI, form, self.limits_of(weight_OI, form))

    def describe(self, name: str, module: Linear) -> ModuleFormat:
        """Description of a module whose weight now lies on the grid of these settings, held as floats."""
        from harness.modules.linears import class_of, weight_of
        from harness.numerics.formats import stored_bits

        weight, bias, settings = weight_of(module), module.bias, self.for_module(name)
        bits = stored_bits(tuple(weight.shape), settings.weight_format())
        return ModuleFormat(
            module=name,
            type=class_of(module),
            parameters=weight.numel() + (0 if bias is None else bias.numel()),
            stored_bytes=-(-bits // 8) + (0 if bias is None else bias.numel() * bias.element_size()),
            bits_per_weight=bits / weight.numel(),
            format=settings.number_format(),
            kernel="simulated",
            backend=self.kind,
        )

    @property
    def _named_format(self) -> NamedFormat:
        return named_formats()[self.format]

    def _patterns(self) -> Iterator[str]:
        yield from super()._patterns()
        for override in self.overrides:
            yield from override.modules

    def _with(self, override: Override) -> WeightBackend:
        given = override.model_dump(exclude={"modules"}, exclude_none=True)
        if given.get("format", "int") != "int":
            given.setdefault("bits", None)
        same = {name: getattr(self, name) for name in self.model_fields_set - {"overrides"}}
        return type(self).model_validate({**same, **given})


class Replacing:
    """Assigns new weights to modules; layers that share one weight keep sharing it.

    The old weight is let go of, so that a model is held once while its layers are replaced one by one.
    """

    def __init__(self) -> None:
        self._done: dict[int, tuple[weakref.ref[Tensor], Parameter]] = {}

    def replace_if_shared(self, module: Linear) -> bool:
        """Whether the weight of ``module`` was already replaced in another layer; if so, replace it here too."""
        done = self._done.get(id(module.weight))
        # The id of a weight that is gone may be that of another one by now.
        if done is None or done[0]() is not module.weight:
            return False
        module.weight = done[1]
        return True

    def replace(self, module: Linear, values_OI: Tensor) -> None:
        """Assign the weight [O, I], converted to the dtype of the old one."""
        from harness.modules.linears import replace_weight
        from harness.numerics.formats import cast

        old = module.weight
        self._done[id(old)] = (weakref.ref(old), replace_weight(module, cast(values_OI, old.dtype)))


@contextmanager
def name_module_in_errors(backend: Backend, module: str) -> Iterator[None]:
    """Turn the ValueError about a weight that cannot be quantized into a BackendError that names the module."""
    try:
        yield
    except ValueError as error:
        raise BackendError(f"{backend.kind}: {module}: {error}; it cannot be quantized") from error


def untie_head(model: PreTrainedModel, changed: Iterable[str]) -> None:
    """Keep a later tie_weights() from reverting a head whose weight was replaced."""
    from harness.modules.linears import output_head

    if output_head(model) in set(changed):
        model.config.tie_word_embeddings = False
