"""The linear layer of LLM.int8(): weight stored as 8-bit codes, inputs quantized at every call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.numerics.llm_int8 import mixed_product


class MixedInt8Linear(nn.Module):
    """Replaces a linear layer. Its products are those of integers, computed in floating point.

    codes: [O, I], int8. steps: [O], float32, the value of one code. Both may be shared with another layer that has the
    same weight. dtype: dtype of the original weight.
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
        """The dequantized weight [O, I], as a new tensor, for code that reads a layer's weight."""
        return (self.codes * self.steps[:, None]).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The output [..., O] for inputs [..., I], in their dtype. Outlier columns are determined over all inputs."""
        result_NO = mixed_product(x.reshape(-1, self.in_features), self.codes, self.steps, self.threshold)
        if self.bias is not None:
            result_NO = result_NO + self.bias
        return result_NO.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes and threshold, shown when the module is printed."""
        return f"in_features={self.in_features}, out_features={self.out_features}, threshold={self.threshold}"
