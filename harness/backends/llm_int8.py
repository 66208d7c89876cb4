"""LLM.int8() quantization of linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness.backends import Compressed
from harness.backends._common.linears import LinearBackend
from harness.backends._common.weights import name_module_in_errors, untie_head
from harness.numerics.named_formats import named_formats
from harness.records import ModuleFormat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.transforms.mixed_int8 import MixedInt8Linear


INT8 = named_formats()["int"]


class LLMInt8(LinearBackend):
    """LLM.int8(): INT8 weights and inputs; input columns with outliers stay in full precision.

    A column is an outlier if any input of the call reaches the threshold, padding included, so results depend slightly
    on the batch. Needs no calibration. Weights have one scale per output channel, inputs one per token; integer sums
    are exact, only the kernel is simulated. Dettmers et al. 2022 (arXiv 2208.07339); as in the library bitsandbytes the
    weights of outlier columns are stored in INT8 like all others.
    """

    quantizes = ("weights", "activations")

    threshold: Annotated[float, Field(gt=0, examples=[6.0])] = 6.0
    """Absolute value from which an input is an outlier."""

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Replace every linear layer that is not skipped; raises BackendError naming the module."""
        from harness.modules.linears import weight_of
        from harness.modules.transforms.mixed_int8 import MixedInt8Linear
        from harness.numerics.llm_int8 import weight_codes

        chosen = self.select_layers(model)
        names = [name for name, _ in chosen]
        untie_head(model, names)
        quantized: dict[int, tuple[Tensor, Tensor]] = {}
        made: dict[int, MixedInt8Linear] = {}
        for name, module in chosen:
            weight = module.weight
            if id(weight) not in quantized:
                with name_module_in_errors(self, name):
                    quantized[id(weight)] = weight_codes(weight_of(module))
            made[id(module)] = MixedInt8Linear(*quantized[id(weight)], module.bias, self.threshold, weight.dtype)
        for path, old in list(model.named_modules(remove_duplicate=False)):
            if id(old) in made:
                model.set_submodule(path, made[id(old)])
        described = tuple(self._describe(name, made[id(module)]) for name, module in chosen)
        inputs = INT8.record(8, granularity="token", dynamic=True, outliers=self.threshold)
        return Compressed(model, described, activations=dict.fromkeys(names, inputs))

    def _describe(self, name: str, module: MixedInt8Linear) -> ModuleFormat:
        weights, bias = module.codes.numel(), module.bias
        stored = weights + module.steps.numel() * module.steps.element_size()
        return ModuleFormat(
            module=name,
            type=type(module).__name__,
            parameters=weights + (0 if bias is None else bias.numel()),
            stored_bytes=stored + (0 if bias is None else bias.numel() * bias.element_size()),
            bits_per_weight=8 * stored / weights,
            format=INT8.record(8, granularity="channel", ranges="min_max"),
            kernel="simulated",
            backend=self.kind,
        )
