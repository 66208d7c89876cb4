"""The number formats that files can name. One entry declares a format, and everything else is derived from it.

    entry ─▶ names that YAML takes, what `harness list` shows     check_name, named_formats
          ─▶ the record of what a module holds                    NamedFormat.record
          ─▶ grid, blocks, scales and stored bits                 grids.grid_of, formats.format_of

A package of its own adds a format with an entry point in the group ``harness.number_formats`` whose value is a
`NamedFormat`. A shipped name cannot be taken. No torch is needed to know the names.

Sources: Micikevicius et al. 2022 (arXiv 2209.05433) for FP8; OCP Microscaling Formats v1.0 for E2M1 and the MX formats;
Dettmers et al. 2023 (arXiv 2305.14314, appendix E) for the values of NF4; Nvidia 2025 (arXiv 2509.25149) for NVFP4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from harness.errors import HarnessError
from harness.records import NumberFormat
from harness.records.formats import NumberType, ScaleStorage

GROUP = "harness.number_formats"
Use = Literal["weights", "inputs", "cache"]
INTEGER_BITS = range(2, 9)
"""Bits of the integers that files can ask for."""
WHOLE_TENSOR_SCALES: tuple[ScaleStorage, ...] = ("e4m3", "double")
"""Ways to store scales in which the scale of a block depends on the other blocks."""
Bits = Annotated[int, Field(ge=INTEGER_BITS[0], le=INTEGER_BITS[-1], examples=[4])]


@dataclass(frozen=True)
class NamedFormat:
    """A number format under the name that files have for it.

    bits: of one code; None where the file gives them (integers). exponent_bits, fraction_bits: of a float with a sign,
    which has all its codes for finite numbers, unless it is a type of torch (dtype). values: of a codebook, ascending,
    with 0 among them. Block formats name the format of their elements and bring group size and scales along.
    default_group: inputs that share a scale where the file does not say. uses: what can be put into the format.
    """

    name: str
    summary: str
    type: NumberType
    bits: int | None
    exponent_bits: int = 0
    fraction_bits: int = 0
    dtype: str = ""
    values: tuple[float, ...] = ()
    elements: str = ""
    group_size: int | None = None
    scales: ScaleStorage = "float"
    default_group: int = 32
    uses: tuple[Use, ...] = ("weights",)

    def record(self, bits: int | None = None, **fields: Any) -> NumberFormat:
        """What is known of values in this format. bits: those of integers; fields: of the record."""
        own: dict[str, Any] = {"symmetric": True, "scales": self.scales}
        if self.group_size is not None:
            own |= {"granularity": "group", "group_size": self.group_size}
        element = "" if self.type == "int" else self.name
        return NumberFormat(type=self.type, bits=self.bits or bits, element=element, **(own | fields))


_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of a normal distribution."""

_SHIPPED = (
    NamedFormat("int", "integers of 2 to 8 bits", "int", None, uses=("weights", "inputs", "cache")),
    NamedFormat(
        "fp8_e4m3", "8-bit floats with 4 bits of exponent", "float", 8, 4, 3, "float8_e4m3fn",
        uses=("weights", "inputs", "cache"),
    ),
    NamedFormat(
        "fp8_e5m2", "8-bit floats with 5 bits of exponent", "float", 8, 5, 2, "float8_e5m2",
        uses=("weights", "inputs", "cache"),
    ),
    NamedFormat("fp4_e2m1", "4-bit floats with 2 bits of exponent", "float", 4, 2, 1),
    NamedFormat(
        "nf4", "16 quantiles of a normal distribution (QLoRA)", "codebook", 4, values=_NF4, default_group=64
    ),
    NamedFormat(
        "mxfp4", "FP4 in groups of 32 under powers of two (OCP MX)", "float", 4, elements="fp4_e2m1", group_size=32,
        scales="e8m0", uses=("weights", "inputs"),
    ),
    NamedFormat(
        "mxfp8_e4m3", "FP8 E4M3 in groups of 32 under powers of two (OCP MX)", "float", 8, elements="fp8_e4m3",
        group_size=32, scales="e8m0", uses=("weights", "inputs"),
    ),
    NamedFormat(
        "mxfp8_e5m2", "FP8 E5M2 in groups of 32 under powers of two (OCP MX)", "float", 8, elements="fp8_e5m2",
        group_size=32, scales="e8m0", uses=("weights", "inputs"),
    ),
    NamedFormat(
        "nvfp4", "FP4 in groups of 16 under FP8 scales (NVFP4)", "float", 4, elements="fp4_e2m1", group_size=16,
        scales="e4m3", uses=("weights", "inputs"),
    ),
)  # fmt: skip


@cache
def named_formats() -> Mapping[str, NamedFormat]:
    """All formats by name: shipped ones first, in the order of the table, then those of other packages.

    Raises HarnessError for an entry point that is no NamedFormat, or has another name than its format or a taken one.
    """
    formats = {each.name: each for each in _SHIPPED}
    for point in entry_points(group=GROUP):
        entry = point.load()
        if not isinstance(entry, NamedFormat) or entry.name != point.name or entry.name in formats:
            raise HarnessError(
                f"{point.value}: found {entry!r}, expected a NamedFormat called {point.name!r} whose name is not taken "
                f"(taken: {', '.join(formats)})"
            )
        formats[entry.name] = entry
    return formats


def check_name(use: Use, name: str) -> str:
    """``name``, if ``use`` can be put into the format of that name; raises what pydantic shows as a choice of names."""
    known = [each.name for each in named_formats().values() if use in each.uses]
    if name not in known:
        expected = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
    return name


WeightFormatName = Annotated[str, AfterValidator(partial(check_name, "weights"))]
InputFormatName = Annotated[str, AfterValidator(partial(check_name, "inputs"))]
CacheFormatName = Annotated[str, AfterValidator(partial(check_name, "cache"))]
