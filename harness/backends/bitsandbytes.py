"""Quantization of linear layers with the library bitsandbytes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.backends._common.library import LibraryBackend
from harness.numerics.named_formats import named_formats
from harness.records import ModuleFormat, Note, NumberFormat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear

THRESHOLD = 6.0
BLOCK = 64
_GROUPS = {"bits": 4, "symmetric": True, "granularity": "group", "ranges": "min_max"}
FOUR_BITS: Mapping[str, NumberFormat] = {
    "nf4": NumberFormat.model_validate({"type": "codebook", "element": "nf4", **_GROUPS}),
    "fp4": NumberFormat.model_validate({"type": "float", "element": "fp4", **_GROUPS}),
}


class Bitsandbytes(LibraryBackend):
    """Quantizes with the library bitsandbytes: LLM.int8() with outlier columns in full precision, 4-bit NF4 and FP4.

    With 4-bit weights, ``group_size`` neighbours in memory order share a scale: if that does not divide the inputs of a
    layer, groups cross the ends of rows. FP4 has the library's own values, not those of E2M1. On processors with
    AVX512-BF16 the library would repack 4-bit weights at the first forward pass and corrupt them when they are saved;
    that is switched off.
    """

    requires = ("bitsandbytes",)
    extra = "bitsandbytes"

    method: Literal["llm_int8", "nf4", "fp4"]
    """``llm_int8``: INT8 weights and inputs; ``nf4`` and ``fp4``: 4-bit weights, computed in the model's dtype."""
    threshold: Annotated[float, Field(ge=0, examples=[6.0])] | None = None
    """Absolute value from which an input column stays in full precision, default 6, 0: none; only with ``llm_int8``."""
    group_size: Literal[64, 128, 256, 512, 1024, 2048, 4096] | None = None
    """Weights that share a scale, default 64; only with 4 bits."""
    double_quantize: bool = False
    """Quantize the scales to 8 bits as well, as in QLoRA; only with 4 bits."""

    @model_validator(mode="after")
    def _check_settings(self) -> Bitsandbytes:
        if self.method == "llm_int8" and (self.group_size is not None or self.double_quantize):
            raise ValueError("llm_int8 has a scale per output channel; leave out group_size and double_quantize")
        if self.method != "llm_int8" and self.threshold is not None:
            raise ValueError(f"threshold needs method: llm_int8; {self.method} leaves inputs as they are")
        return self

    def number_format(self, module: Linear) -> NumberFormat:
        """Always symmetric."""
        if self.method == "llm_int8":
            return named_formats()["int"].record(8, granularity="channel", ranges="min_max")
        scales = "double" if self.double_quantize else "float"
        return FOUR_BITS[self.method].model_copy(update={"group_size": self.group_size or BLOCK, "scales": scales})

    def inputs(self) -> NumberFormat | None:
        """INT8 with LLM.int8(), else none."""
        if self.method != "llm_int8":
            return None
        outliers = self._threshold or None
        return named_formats()["int"].record(8, granularity="token", dynamic=True, outliers=outliers)

    def checkpoint_config(self, left_out: Sequence[str]) -> Any:
        """transformers' own configuration; group sizes are stored in the files."""
        from transformers import BitsAndBytesConfig

        make: Any = BitsAndBytesConfig
        return make(
            load_in_8bit=self.method == "llm_int8",
            load_in_4bit=self.method != "llm_int8",
            llm_int8_threshold=self._threshold,
            llm_int8_skip_modules=list(left_out),
            bnb_4bit_quant_type="fp4" if self.method == "llm_int8" else self.method,
            bnb_4bit_use_double_quant=self.double_quantize,
        )

    def hand_over(
        self,
        model: PreTrainedModel,
        names: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        calibration: Sequence[Tensor],
    ) -> PreTrainedModel:
        """Replace each layer by a module of the library; bias and sizes stay."""
        # It warns at every single product that inputs are rounded to float16, which is one of the notes.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return self.replace_each(model, names, self._int8 if self.method == "llm_int8" else self._four_bits)

    def _int8(self, old: Any) -> Any:
        from bitsandbytes.nn import Int8Params, Linear8bitLt

        new = Linear8bitLt(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            has_fp16_weights=False,
            threshold=self._threshold,
            device="meta",  # No random numbers are drawn for weights that are replaced at once.
        )
        # Quantized on the way from the processor to wherever it was, which may be the processor again.
        weight = Int8Params(old.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
        new.weight, new.bias = weight.to(old.weight.device), old.bias
        new.init_8bit_state()  # As at the first forward pass, so that no tensor changes its place then.
        new.weight.data = new.state.CB
        return new

    def _four_bits(self, old: Any) -> Any:
        from bitsandbytes.nn import Linear4bit, Params4bit

        new = Linear4bit(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            compute_dtype=old.weight.dtype,
            compress_statistics=self.double_quantize,
            quant_type=self.method,
            device="meta",
        )
        new.support_avx512bf16_for_cpu = False
        weight = Params4bit(
            old.weight.data,
            requires_grad=False,
            blocksize=self.group_size or BLOCK,
            compress_statistics=self.double_quantize,
            quant_type=self.method,
            module=new,
        )
        new.weight, new.bias = weight.to(old.weight.device), old.bias
        return new

    def _notes(self, found: Sequence[ModuleFormat]) -> list[Note]:
        notes = super()._notes(found)
        if self.method == "llm_int8":
            text = "bitsandbytes rounds weights and inputs to float16 before it quantizes them"
            notes.append(Note(topic="kernel", text=f"{self.kind}: {text}"))
        return notes

    @property
    def _threshold(self) -> float:
        return THRESHOLD if self.threshold is None else self.threshold
