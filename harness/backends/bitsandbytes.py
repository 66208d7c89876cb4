"""bitsandbytes' quantization of linear layers."""

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
    """The library bitsandbytes: LLM.int8() with outlier columns in full precision, and 4-bit NF4 and FP4.

    Of 4-bit weights, ``group_size`` neighbours share a scale, in the order in which the weight lies in memory: where
    that does not divide the inputs of a layer, groups run over the ends of rows. FP4 has the library's own values,
    not those of E2M1. On processors with AVX512-BF16 the library would lay 4-bit weights out anew at the first
    forward pass and spoil them when they are saved; that is switched off.
    """

    requires = ("bitsandbytes",)
    extra = "bitsandbytes"

    method: Literal["llm_int8", "nf4", "fp4"]
    """``llm_int8``: INT8 weights and inputs; ``nf4`` and ``fp4``: 4-bit weights, computed in the model's dtype."""
    threshold: Annotated[float, Field(ge=0)] | None = None
    """Absolute value from which an input column keeps its precision, 6 if not given, 0 for none; only with
    ``llm_int8``."""
    group_size: Literal[64, 128, 256, 512, 1024, 2048, 4096] | None = None
    """Weights that share a scale, 64 if not given; only with 4 bits."""
    double_quantize: bool = False
    """Quantize the scales to 8 bits again, as QLoRA does; only with 4 bits."""

    @model_validator(mode="after")
    def _consistent(self) -> Bitsandbytes:
        if self.method == "llm_int8" and (self.group_size is not None or self.double_quantize):
            raise ValueError("llm_int8 has a scale per output channel; leave out group_size and double_quantize")
        if self.method != "llm_int8" and self.threshold is not None:
            raise ValueError(f"threshold needs method: llm_int8; {self.method} leaves inputs as they are")
        return self

    def number_format(self, module: Linear) -> NumberFormat:
        """Symmetric grids all of them."""
        if self.method == "llm_int8":
            return named_formats()["int"].record(8, granularity="channel", ranges="min_max")
        scales = "double" if self.double_quantize else "float"
        return FOUR_BITS[self.method].model_copy(update={"group_size": self.group_size or BLOCK, "scales": scales})

    def inputs(self) -> NumberFormat | None:
        """With LLM.int8() alone."""
        if self.method != "llm_int8":
            return None
        outliers = self._threshold or None
        return named_formats()["int"].record(8, granularity="token", dynamic=True, outliers=outliers)

    def checkpoint_config(self, left_out: Sequence[str]) -> Any:
        """transformers' own configuration; sizes of groups are in the files."""
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
        """A module of the library in the place of each layer; bias and sizes stay."""
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
