"""Quantization with the library NVIDIA ModelOpt."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from harness.backends._common.simulating import Result, Simulated, SimulatingBackend, preserve_global_state
from harness.numerics.named_formats import named_formats
from harness.records import NumberFormat

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear

_CONFIGURATIONS: Mapping[str, str] = {
    "int8": "INT8_DEFAULT_CFG",
    "int8_smoothquant": "INT8_SMOOTHQUANT_CFG",
    "int8_weights": "INT8_WEIGHT_ONLY_CFG",
    "fp8": "FP8_DEFAULT_CFG",
    "fp8_per_channel_per_token": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "int4": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
    "mxfp4": "MXFP4_DEFAULT_CFG",
    "mxfp8": "MXFP8_DEFAULT_CFG",
}
"""The library's configuration name of each scheme."""
_INT8 = named_formats()["int"].record(8)
_FP8 = named_formats()["fp8_e4m3"].record()
_BLOCKS: Mapping[str, NumberFormat] = {
    "nvfp4": named_formats()["nvfp4"].record(),
    "mxfp4": named_formats()["mxfp4"].record(),
    "mxfp8": named_formats()["mxfp8_e4m3"].record(),
}
"""Block formats with their own groups and scales, for weights and inputs."""
_INPUTS: Mapping[str, NumberFormat] = {
    "int8": _INT8.model_copy(update={"granularity": "tensor", "dynamic": False}),
    "int8_smoothquant": _INT8.model_copy(update={"granularity": "tensor", "dynamic": False}),
    "fp8": _FP8.model_copy(update={"granularity": "tensor", "dynamic": False}),
    "fp8_per_channel_per_token": _FP8.model_copy(update={"granularity": "token", "dynamic": True}),
    **{scheme: block.model_copy(update={"dynamic": True}) for scheme, block in _BLOCKS.items()},
}
_INT8_SCHEMES = ("int8", "int8_smoothquant", "int8_weights")
_INT4_GROUP = 128
_WITHOUT_DOCUMENTS = ("int8_weights", "fp8_per_channel_per_token", "int4", "mxfp4", "mxfp8")


class Modelopt(SimulatingBackend):
    """Quantizes with the library NVIDIA ModelOpt: INT8 with SmoothQuant, FP8, INT4 with AWQ, and on CUDA 4-bit floats.

    The library computes with floats: weights are rounded once, inputs at every use; its exported checkpoints store
    codes for kernels of other runtimes. nvfp4, mxfp4 and mxfp8 were never run in this project's tests: the library
    rounds them on CUDA only.
    """

    requires = ("modelopt",)
    extra = "modelopt"

    scheme: Literal[
        "int8", "int8_smoothquant", "int8_weights", "fp8", "fp8_per_channel_per_token", "int4", "int4_awq", "nvfp4",
        "mxfp4", "mxfp8",
    ]  # fmt: skip
    """One of the library's configurations: INT8_DEFAULT_CFG, INT8_SMOOTHQUANT_CFG, INT8_WEIGHT_ONLY_CFG and so on."""
    group_size: Annotated[int, Field(ge=1, examples=[128])] | None = None
    """Inputs that share a scale, default 128; the last group may be shorter. Only with int4 and int4_awq."""

    @model_validator(mode="after")
    def _check_settings(self) -> Modelopt:
        if self.group_size is not None and self.scheme not in ("int4", "int4_awq"):
            raise ValueError(f"group_size belongs to int4 and int4_awq; {self.scheme} has its own")
        return self

    @property
    def calibrates(self) -> bool:
        """Whether the step needs calibration documents with these settings."""
        return self.scheme not in _WITHOUT_DOCUMENTS

    def inputs(self) -> NumberFormat | None:
        """The format of inputs, if the scheme quantizes them."""
        return _INPUTS.get(self.scheme)

    def check(self, module: Linear) -> str:
        """Why the library cannot quantize a layer."""
        device = module.weight.device.type
        if self.scheme in _BLOCKS and device != "cuda":
            what = f"is on {device}, and the library rounds to {self.scheme} on CUDA only"
            return f"{what}; set device: cuda in reference:, or choose another scheme"
        return ""

    def number_format(self, module: Linear) -> NumberFormat:
        """The weight format of the scheme."""
        if self.scheme in _INT8_SCHEMES:
            return _INT8.model_copy(update={"granularity": "channel", "ranges": "min_max"})
        if block := _BLOCKS.get(self.scheme):
            return block.model_copy(update={"ranges": "min_max"})
        if self.scheme in ("int4", "int4_awq"):
            groups = {"granularity": "group", "group_size": self.group_size or _INT4_GROUP, "ranges": "min_max"}
            return _INT8.model_copy(update={"bits": 4, **groups})
        granularity = "tensor" if self.scheme == "fp8" else "channel"
        return _FP8.model_copy(update={"granularity": granularity, "ranges": "min_max"})

    def simulate(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
    ) -> Result:
        """Run the library's ``quantize`` and fold the rounding into the weights."""
        import modelopt.torch.quantization as mtq
        import torch

        def forward_all(model: Any) -> None:
            for ids in calibration:
                model(input_ids=ids[None].to(model.device), use_cache=False)

        with torch.no_grad():
            made = mtq.quantize(model, self._configuration(names), forward_all if self.calibrates else None)
            mtq.fold_weight(made, keep_attrs=True)
        found = {}
        for name in names:
            module = cast("Linear", made.get_submodule(name))
            if type(module) is not torch.nn.Linear:
                stated = self.number_format(module)
                found[name] = Simulated(stated, _scale_bits(stated, *module.weight.shape), self.inputs())
        return Result(made, found)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Export the library's checkpoint, which transformers does not load but other runtimes do."""
        import torch
        from modelopt.torch.export import export_hf_checkpoint
        from modelopt.torch.quantization.nn import TensorQuantizer

        shipped = copy.deepcopy(model)
        shipped.config.architectures = shipped.config.architectures or [type(model).__name__]
        for name, module in shipped.named_modules():
            if isinstance(module, TensorQuantizer) and name.endswith(".weight_quantizer") and module.amax is not None:
                module.enable()  # The weight is rounded already; the library packs what its quantizers round.
        with preserve_global_state(), torch.no_grad():
            export_hf_checkpoint(shipped, export_dir=str(folder))

    def _configuration(self, names: Sequence[str]) -> dict[str, Any]:
        """The library's configuration for the named layers only."""
        import modelopt.torch.quantization as mtq

        own = copy.deepcopy(getattr(mtq, _CONFIGURATIONS[self.scheme]))
        entries = {str(each["quantizer_name"]): each for each in own["quant_cfg"]}
        chosen: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
        for kind in ("weight_quantizer", "input_quantizer"):
            entry = {key: value for key, value in entries[f"*{kind}"].items() if key != "quantizer_name"}
            if self.group_size is not None and kind == "weight_quantizer":
                entry["cfg"]["block_sizes"][-1] = self.group_size
            chosen += [{"quantizer_name": f"{name}.{kind}", **entry} for name in names]
        return {"quant_cfg": chosen, "algorithm": own["algorithm"]}


def _scale_bits(stated: NumberFormat, outputs: int, inputs: int) -> int:
    """Bits of scales in the library's checkpoint: 32 each, but 8 in block formats (and 32 for all of nvfp4)."""
    scales = {"tensor": 1, "channel": outputs}
    count = scales.get(stated.granularity) or outputs * ceil(inputs / (stated.group_size or inputs))
    return count * (8 if stated.scales in ("e8m0", "e4m3") else 32) + (32 if stated.scales == "e4m3" else 0)
