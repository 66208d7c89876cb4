"""Quantization with AutoRound."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from harness.backends._common.simulating import Result, Simulated, SimulatingBackend
from harness.numerics.named_formats import named_formats
from harness.records import Note

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear


class Autoround(SimulatingBackend):
    """Rounds weights up or down as learned by signed gradient descent on the outputs of each block (AutoRound).

    After Cheng et al. 2023 (arXiv 2309.05516). The library requires calibration documents of one length: documents are
    cut to the length that keeps the most tokens, shorter ones are dropped, and a note reports it. Scales are 16-bit
    floats; the library computes with floats, and its checkpoint stores the codes. Importing the library changes how
    transformers loads some other checkpoints.
    """

    requires = ("auto_round",)
    extra = "autoround"
    takes_conv1d = True

    bits: Literal[2, 3, 4, 5, 6, 7, 8]
    """Bits per code."""
    group_size: Annotated[int, Field(ge=1, examples=[128])] | None = 128
    """Inputs that share a scale; null: the whole output channel."""
    symmetric: bool = True
    """true: codes around 0 without a zero point; false: with a zero point."""
    iterations: Annotated[int, Field(ge=0)] = 200
    """Gradient descent steps per block; 0: plain rounding with the library's scales, without documents."""
    batch: Annotated[int, Field(ge=1, examples=[8])] | None = None
    """Documents per gradient descent step, default 8."""
    seed: int | None = Field(default=None, examples=[42])
    """Random seed of the order of documents, default 42."""

    @model_validator(mode="after")
    def _check_settings(self) -> Autoround:
        if not self.iterations and (self.batch is not None or self.seed is not None):
            raise ValueError("batch and seed belong to iterations of at least 1")
        return self

    @property
    def calibrates(self) -> bool:
        """Whether the step needs calibration documents with these settings."""
        return self.iterations > 0

    def check(self, module: Linear) -> str:
        """Why the library cannot quantize a layer: it silently skips some sizes."""
        rows, columns = module.weight.shape
        if rows % 32 or columns % 32:
            return f"is {rows}×{columns}, and the library supports multiples of 32 only; skip it"
        return ""

    def simulate(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
    ) -> Result:
        """Run the library, read its scales, and remove everything else it attached to the modules."""
        import torch
        from auto_round import AutoRound

        from harness.modules.linears import linears, output_head

        length, documents = _cut_to_one_length(calibration)
        scheme = {"bits": self.bits, "group_size": self.group_size or -1, "sym": self.symmetric, "data_type": "int"}
        kept = {name: set(vars(module)) for name, module in model.named_modules()}
        dtypes = {name: tensor.dtype for name, tensor in _tensors(model)}
        head = output_head(model)
        others = {name: {"bits": 16} for name, _ in linears(model) if name not in names and name != head}
        quiet = logging.getLogger("autoround")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        gc.freeze()  # The library collects garbage at every step: not through all that was there before.
        try:
            with torch.enable_grad():
                made, _ = AutoRound(
                    model,
                    tokenizer,
                    scheme={**scheme, "act_bits": 16},
                    layer_config=others,
                    dataset=documents,
                    iters=self.iterations,
                    seqlen=length,
                    nsamples=max(1, len(documents)),
                    batch_size=min(self.batch or 8, max(1, len(documents))),
                    device_map=str(model.device),
                    enable_torch_compile=False,
                    seed=42 if self.seed is None else self.seed,
                    amp=False,
                    low_cpu_mem_usage=False,
                    quant_lm_head=head in names,
                    **({} if self.iterations else {"disable_opt_rtn": True}),
                ).quantize()
        finally:
            gc.unfreeze()
            quiet.setLevel(level)
        modules = {name: made.get_submodule(name) for name in names}
        formats = {name: self._describe_module(module) for name, module in modules.items() if hasattr(module, "scale")}
        _clear(made, kept, dtypes)
        note = f"{self.kind}: {len(documents)} of {len(calibration)} documents, cut at {length} tokens"
        return Result(made, formats, notes=(Note(topic="calibration", text=note),) if calibration else ())

    def _describe_module(self, module: nn.Module) -> Simulated:
        granularity: Literal["group", "channel"] = "group" if self.group_size else "channel"
        ranges = "output_error" if self.iterations else "min_max"
        sharing = {"granularity": granularity, "group_size": self.group_size, "symmetric": self.symmetric}
        stated = named_formats()["int"].record(self.bits, **sharing, ranges=ranges)
        return Simulated(stated, cast("Tensor", module.scale).numel() * (16 if self.symmetric else 16 + self.bits))


def _cut_to_one_length(calibration: Sequence[Tensor]) -> tuple[int, list[dict[str, Any]]]:
    """Cut the documents to one length, the one that keeps the most tokens; also return that length."""
    import torch

    lengths = sorted({len(ids) for ids in calibration})
    if not lengths:
        return 2, []
    length = max(lengths, key=lambda size: size * sum(len(ids) >= size for ids in calibration))
    rows = [ids[None, :length] for ids in calibration if len(ids) >= length]
    return length, [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _clear(model: nn.Module, kept: dict[str, set[str]], dtypes: dict[str, Any]) -> None:
    """Remove the attributes that modules did not have before, and restore the dtype of tensors."""
    for name, module in model.named_modules():
        for key in set(vars(module)) - kept.get(name, set(vars(module))):
            delattr(module, key)
    for name, tensor in _tensors(model):
        tensor.data = tensor.data.to(dtypes.get(name, tensor.dtype))
