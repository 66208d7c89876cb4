"""Quantization of linear layers with the library torchao."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.backends._common.library import LibraryBackend, uneven_groups
from harness.numerics.named_formats import named_formats
from harness.records import NumberFormat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear

Method = Literal[
    "int8_weight_only",
    "int8_dynamic_activation_int8_weight",
    "intx_weight_only",
    "int8_dynamic_activation_intx_weight",
    "float8_weight_only",
    "int4_weight_only",
]
INTX = ("intx_weight_only", "int8_dynamic_activation_intx_weight")
DYNAMIC = ("int8_dynamic_activation_int8_weight", "int8_dynamic_activation_intx_weight")
BITS: Mapping[str, int] = {"int8_weight_only": 8, "int8_dynamic_activation_int8_weight": 8, "int4_weight_only": 4}
TILES = (32, 64, 128, 256)
"""Group sizes that the 4-bit kernel supports."""


class Torchao(LibraryBackend):
    """Quantizes with the library torchao: INT8, FP8, integers of 2 to 7 bits, optionally with dynamic INT8 inputs.

    Weights become tensor subclasses of torchao that dispatch to its kernels. Integers below 8 bits (``intx``) are
    stored one per byte, for export to other runtimes: such modules count as simulated. ``int4_weight_only`` packs two
    codes in a byte and needs a CUDA device and bfloat16; it was written after the library's documentation and never run
    in this project's tests, whose machines have no such device.
    """

    requires = ("torchao",)
    extra = "torchao"

    method: Method
    """torchao configuration: ``int8_weight_only``, ``int8_dynamic_activation_int8_weight``, ``intx_weight_only``,
    ``int8_dynamic_activation_intx_weight``, ``float8_weight_only``, ``int4_weight_only``."""
    bits: Annotated[int, Field(ge=2, le=8, examples=[4])] | None = None
    """Bits per code; required with the two ``intx`` methods, not allowed with others."""
    group_size: Annotated[int, Field(ge=8, examples=[128])] | None = None
    """Inputs that share a scale; not given: one scale per output channel."""
    symmetric: bool = True
    """true: codes around 0 without a zero point; false only with ``intx``."""

    @model_validator(mode="after")
    def _check_settings(self) -> Torchao:
        if (self.method in INTX) != (self.bits is not None):
            raise ValueError(f"bits belongs to {' and '.join(INTX)}, and only to them; the others have their own")
        if not self.symmetric and self.method not in INTX:
            raise ValueError(f"symmetric: false needs {' or '.join(INTX)}; {self.method} has no zero points")
        if self.method == "int8_dynamic_activation_int8_weight" and self.group_size is not None:
            raise ValueError(f"{self.method} has a scale per output channel; leave out group_size")
        if self.method == "int4_weight_only" and self.group_size not in TILES:
            raise ValueError(f"int4_weight_only needs a group_size of {', '.join(map(str, TILES))}")
        return self

    def number_format(self, module: Linear) -> NumberFormat:
        """Integers use all their codes, symmetric ones from −2^(b−1): s = max|x| / (2^(b−1) − ½)."""
        sharing: dict[str, Any] = {"granularity": "group" if self.group_size else "channel", "ranges": "min_max"}
        sharing |= {"group_size": self.group_size, "symmetric": self.symmetric and self.method != "int4_weight_only"}
        if self.method == "float8_weight_only":
            return named_formats()["fp8_e4m3"].record(**sharing)
        return named_formats()["int"].record(self.bits or BITS[self.method], **sharing)

    def inputs(self) -> NumberFormat | None:
        """Symmetric with 8-bit weights, asymmetric otherwise, as in torchao."""
        if self.method not in DYNAMIC:
            return None
        symmetric = self.method not in INTX
        return named_formats()["int"].record(8, symmetric=symmetric, granularity="token", dynamic=True)

    def check(self, module: Linear) -> str:
        """Supports nn.Linear whose inputs the group size divides; packed 4-bit weights need CUDA and bfloat16."""
        import torch

        weight = module.weight
        if type(module).forward is not torch.nn.Linear.forward:
            return (
                f"{type(module).__name__} has its own matrix product, which torchao's tensors do not support; skip "
                "it, or choose a backend that replaces the layer (bitsandbytes, quanto)"
            )
        if uneven := uneven_groups(module, self.group_size):
            return uneven
        if self.method == "int4_weight_only" and (weight.device.type != "cuda" or "bfloat16" not in str(weight.dtype)):
            found = f"{weight.device.type}, {str(weight.dtype).removeprefix('torch.')}"
            return (
                f"int4_weight_only has kernels for CUDA devices and bfloat16 only, and this is on {found}; set device: "
                "cuda and dtype: bfloat16 in reference:, or choose intx_weight_only with bits: 4"
            )
        return ""

    def checkpoint_config(self, left_out: Sequence[str]) -> Any:
        """transformers' own configuration around torchao's."""
        from transformers import TorchAoConfig

        return TorchAoConfig(self._config(), modules_to_not_convert=list(left_out))

    def hand_over(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
    ) -> PreTrainedModel:
        """One layer at a time, so that an error names it."""
        from torchao.quantization import quantize_

        config = self._config()

        def quantize_module(module: Any) -> Any:
            quantize_(module, config, filter_fn=lambda *_: True)
            return module

        return self.replace_each(model, names, quantize_module)

    def _config(self) -> Any:
        # Their constructors set options of torch's compiler and the precision of all float32 products, if allowed to.
        import torch
        from torchao import quantization as ao
        from torchao.quantization.quant_primitives import MappingType

        groups = ao.PerGroup(self.group_size) if self.group_size else None
        if self.method == "int8_weight_only":
            return ao.Int8WeightOnlyConfig(granularity=groups or ao.PerRow(), set_inductor_config=False)
        if self.method == "float8_weight_only":
            return ao.Float8WeightOnlyConfig(granularity=groups or ao.PerRow(), set_inductor_config=False)
        if self.method == "int8_dynamic_activation_int8_weight":
            return ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        if self.method == "int4_weight_only":
            return ao.Int4WeightOnlyConfig(
                group_size=self.group_size, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
            )
        dtype, onto = getattr(torch, f"int{self.bits}"), groups or ao.PerAxis(0)
        mapping = MappingType.SYMMETRIC if self.symmetric else MappingType.ASYMMETRIC
        if self.method == "intx_weight_only":
            return ao.IntxWeightOnlyConfig(weight_dtype=dtype, granularity=onto, mapping_type=mapping)
        return ao.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=dtype, weight_granularity=onto, weight_mapping_type=mapping
        )
