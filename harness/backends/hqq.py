"""HQQ's quantization of linear layers."""

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
    """The library HQQ: integers of 1 to 8 bits whose zero points a few half-quadratic steps fit to the weights.

    No documents are looked at. Codes are packed, also those of 1, 2 and 3 bits (ten of these in 32 bits); scales and
    zero points are floats of the model's dtype. Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog.
    """

    requires = ("hqq",)
    extra = "hqq"

    bits: Literal[1, 2, 3, 4, 8]
    """Bits of one code."""
    group_size: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """Inputs that share a scale and a zero point."""

    def number_format(self, module: Linear) -> NumberFormat:
        """Always with zero points."""
        sharing = {"granularity": "group", "group_size": self.group_size, "symmetric": False}
        return named_formats()["int"].record(self.bits, **sharing, ranges="hqq")

    def check(self, module: Linear) -> str:
        """Groups must divide the inputs; the library would run over the ends of rows, or fail."""
        return uneven_groups(module, self.group_size)

    def hand_over(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
    ) -> PreTrainedModel:
        """A module of the library in the place of each layer, in the dtype of its weight."""
        return self.replace_each(model, names, self._made)

    def _made(self, old: Any) -> Any:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        config = BaseQuantizeConfig(nbits=self.bits, group_size=self.group_size, axis=1)
        return HQQLinear(old, config, compute_dtype=old.weight.dtype, device=str(old.weight.device))
