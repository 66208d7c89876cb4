"""Quantization of linear layers with the library HQQ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness.backends._common.library import LibraryBackend, uneven_groups
from harness.numerics.named_formats import named_formats
from harness.records import NumberFormat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear


class Hqq(LibraryBackend):
    """Quantizes with the library HQQ: integers of 1 to 8 bits with zero points fitted by half-quadratic optimisation.

    Needs no calibration documents. Codes are packed, also those of 1, 2 and 3 bits (ten 3-bit codes in 32 bits); scales
    and zero points are floats of the model's dtype. Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog.
    """

    requires = ("hqq",)
    extra = "hqq"

    bits: Literal[1, 2, 3, 4, 8]
    """Bits per code."""
    group_size: Annotated[int, Field(ge=8, multiple_of=8, examples=[128])] = 64
    """Inputs that share a scale and a zero point."""

    def number_format(self, module: Linear) -> NumberFormat:
        """Always asymmetric."""
        sharing = {"granularity": "group", "group_size": self.group_size, "symmetric": False}
        return named_formats()["int"].record(self.bits, **sharing, ranges="hqq")

    def check(self, module: Linear) -> str:
        """Groups must divide the inputs; otherwise the library's groups cross the ends of rows, or it fails."""
        return uneven_groups(module, self.group_size)

    def hand_over(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
    ) -> PreTrainedModel:
        """Replace each layer by a module of the library, in the dtype of its weight."""
        return self.replace_each(model, names, self._quantize)

    def _quantize(self, old: Any) -> Any:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        config = BaseQuantizeConfig(nbits=self.bits, group_size=self.group_size, axis=1)
        return HQQLinear(old, config, compute_dtype=old.weight.dtype, device=str(old.weight.device))
