"""The linear layer of LLM.int8(): 8-bit codes of the weight, and inputs quantized at every call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.numerics.llm_int8 import mixed_product


class MixedInt8Linear(nn.Module):
    """Stands where a linear layer was. Its products are those of integers, computed in floats.

    codes: [O, I], int8. steps: [O], float32, what one code stands for. Both may be those of another layer
    with the same weight. dtype: that of the weight before.
    """

    codes: Tensor
    steps: Tensor
    bias: nn.Parameter | None

    def __init__(
        self, codes: Tensor, steps: Tensor, bias: nn.Parameter | None, threshold: float, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes)
        self.register_buffer("steps", steps)
        self.register_parameter("bias", bias)
        self.threshold, self.dtype = threshold, dtype

    @property
    def weight(self) -> Tensor:
        """What the codes stand for [O, I]: a new tensor, for code that asks a layer for its weight."""
        return (self.codes * self.steps[:, None]).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The output [..., O] for inputs [..., I], in their dtype. Outlier columns are those of all inputs together."""
        result_NO = mixed_product(x.reshape(-1, self.in_features), self.codes, self.steps, self.threshold)
        if self.bias is not None:
            result_NO = result_NO + self.bias
        return result_NO.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes and threshold, as the module is printed."""
        return f"in_features={self.in_features}, out_features={self.out_features}, threshold={self.threshold}"
