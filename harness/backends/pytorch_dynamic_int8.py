"""PyTorch's own dynamic INT8 quantization for CPUs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness.backends._common.library import LibraryBackend
from harness.numerics.named_formats import named_formats
from harness.records import NumberFormat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear

INT8 = named_formats()["int"]


class PytorchDynamicInt8(LibraryBackend):
    """PyTorch's quantize_dynamic: INT8 weights and inputs with a range per call, with integer kernels on CPU.

    All tokens of a call share a range, so results depend on the batch. Inputs use 128 of their 256 codes, because sums
    of pairs of products would overflow on older processors. For float32 models on CPU; weights are packed for the
    kernel, and are counted as codes, scales and zero points.
    """

    dtypes = ("float32",)
    devices = ("cpu",)

    granularity: Literal["tensor", "channel"] = "tensor"
    """The weights that share a scale: the whole tensor (PyTorch's default), or an output channel."""

    def number_format(self, module: Linear) -> NumberFormat:
        """All codes from −128 to 127: s = max|x| / 127.5."""
        return INT8.record(8, granularity=self.granularity, ranges="min_max")

    def inputs(self) -> NumberFormat:
        """Unsigned codes with a zero point."""
        return INT8.record(8, symmetric=False, granularity="tensor", dynamic=True)

    def hand_over(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
    ) -> PreTrainedModel:
        """All layers in one call."""
        from torch.ao import quantization

        ao: Any = quantization
        config = ao.default_dynamic_qconfig if self.granularity == "tensor" else ao.per_channel_dynamic_qconfig
        with warnings.catch_warnings():  # That torchao is to take its place one day.
            warnings.simplefilter("ignore")
            compressed: PreTrainedModel = ao.quantize_dynamic(model, dict.fromkeys(names, config), inplace=True)
        return compressed
