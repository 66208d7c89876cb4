"""One record for every number format: of weights, of the inputs of a layer, of cached keys and values.

The vocabulary is that of compressed-tensors' ``QuantizationArgs`` (type, bits, symmetric, strategy, group size,
dynamic, act-order), so that a checkpoint, a backend, the table of kernels and the report speak of the same facts. What
a reader sees is ``str()`` of the record; no words are ever read back into one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from harness.records.base import Record

NumberType = Literal["int", "float", "codebook", "other"]
Granularity = Literal["none", "tensor", "channel", "group", "block", "token", "head"]
ScaleStorage = Literal["", "none", "float", "e8m0", "e4m3", "double"]

_ALONG: Mapping[str, str] = {"channel": "tokens", "token": "channels"}
"""What the groups of a KV cache consist of, where a scale belongs to a channel or to a token."""


class NumberFormat(Record):
    """Which numbers a tensor holds, and which of them share a scale.

    type, bits: of one code (``codebook``: any list of values); bits None where files do not tell. element: the name of
    the values where type and bits do not give it (``fp8_e4m3``, ``nf4``, ``mxfp4``, ``Q4_K`` of GGUF). symmetric: no
    zero point; None where that is not known or does not apply. granularity: what shares a scale (``none``: nothing, or
    it is not known; ``head``: one token's values in a head of a KV cache). group_size: inputs of a group, side of a
    square block; in a KV cache the tokens (of a channel) or channels (of a token) that share a scale. scales: how they
    are stored (``none``: there are none; empty: not known). dynamic: the range is taken from every input anew; None for
    weights. ranges: the method that set the range (``min_max``, ``mse``, ``output_error`` …); percentile, in percent,
    belongs to the method of that name. act_order: groups are of columns in another order, which an index tells.
    outliers: absolute input from which a column stays in full precision. sparse: some weights are kept exactly.
    """

    type: NumberType
    bits: Annotated[int, Field(ge=1)] | None = None
    element: str = ""
    symmetric: bool | None = None
    granularity: Granularity = "none"
    group_size: Annotated[int, Field(ge=1)] | None = None
    scales: ScaleStorage = ""
    dynamic: bool | None = None
    ranges: str = ""
    percentile: float | None = None
    act_order: bool = False
    outliers: float | None = None
    sparse: bool = False

    @property
    def name(self) -> str:
        """What the field calls the values: ``int4``, ``fp8_e4m3``, ``float32``, ``codebook4+sparse`` …"""
        return (self.element or f"{self.type}{self.bits or ''}") + ("+sparse" if self.sparse else "")

    @property
    def full_precision(self) -> bool:
        """Whether values are plain floats of 16 bits or more."""
        return self.type == "float" and (self.bits or 0) >= 16

    @property
    def range_method(self) -> str:
        """How the range was set: "mse", "percentile 99.9"; empty where that is not known."""
        return self.ranges if self.percentile is None else f"{self.ranges} {self.percentile:g}"

    def __str__(self) -> str:
        """ "int4 in groups of 32", "asymmetric int8 per token, dynamic", "fp8_e4m3 per tensor, static (mse)"."""
        text = f"{'asymmetric ' if self.symmetric is False else ''}{self.name}{self._describe_sharing()}"
        if self.dynamic is not None:
            method = f" ({self.range_method})" if self.ranges else ""
            text += ", dynamic" if self.dynamic else f", static{method}"
        if self.outliers is not None:
            text += f"; columns with |x| >= {self.outliers:g} in full precision"
        return text

    def _describe_sharing(self) -> str:
        if self.granularity == "none":
            return " without scales" if self.scales == "none" else ""
        if self.granularity in ("group", "block"):
            return f" in {self.granularity}s of {self.group_size}"
        if self.granularity == "head":
            return " per token and head"
        along = f" in groups of {self.group_size} {_ALONG.get(self.granularity, 'values')}" if self.group_size else ""
        return f" per {self.granularity}{along}"


FLOATS: Mapping[str, NumberFormat] = {
    "float16": NumberFormat(type="float", bits=16),
    "bfloat16": NumberFormat(type="float", bits=16, element="bfloat16"),
    "float32": NumberFormat(type="float", bits=32),
    "float64": NumberFormat(type="float", bits=64),
}
"""Full precision, by the names that torch has for it."""
