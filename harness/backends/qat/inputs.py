"""How the inputs of layers are rounded, while a model is trained and afterwards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.numerics.named_formats import Bits, InputFormatName, named_formats
from harness.records import Entry, NumberFormat


class Inputs(Entry):
    """The format to which the inputs of the layers are rounded, during the training and from then on."""

    format: InputFormatName = "int"
    """``int`` (with ``bits``), an FP8 float, or a block format (``mxfp4``, ``mxfp8_…``, ``nvfp4``)."""
    bits: Bits | None = None
    """Bits per code; required with format ``int``, not allowed with others."""
    symmetric: bool = True
    """true: codes around 0 without a zero point; false: the grid spans the smallest to the largest value, and 0."""
    granularity: Literal["tensor", "token"] = "token"
    """The values that share a scale: the whole input, or the vector of one token."""
    dynamic: bool = True
    """true: compute the range of every input anew; false: a moving average of the training's inputs (granularity
    ``tensor`` only), or a learned step."""
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.01
    """How far each batch moves a static range towards its own smallest and largest input."""

    @model_validator(mode="after")
    def _check_settings(self) -> Inputs:
        in_groups = named_formats()[self.format].group_size is not None
        if (self.format == "int") != (self.bits is not None):
            raise ValueError("bits belongs to format: int, and only to it; the other formats have their own")
        if self.format != "int" and not self.symmetric:
            raise ValueError(f"symmetric: false needs format: int; {self.format} has no zero point")
        if in_groups and (self.granularity != "token" or not self.dynamic):
            raise ValueError(f"{self.format} brings its own groups with dynamic scales; leave out granularity, dynamic")
        if not self.dynamic and self.granularity != "tensor":
            raise ValueError(
                "dynamic: false needs granularity: tensor; the scale of a future token is not known in advance"
            )
        return self

    def number_format(self) -> NumberFormat:
        """The format as it is described. Loads no torch."""
        fields: dict[str, Any] = {"symmetric": self.symmetric, "dynamic": self.dynamic}
        if named_formats()[self.format].group_size is None:
            fields["granularity"] = self.granularity
        return named_formats()[self.format].record(self.bits, **fields)
