"""Dense-and-sparse quantization with sensitivity-weighted codebooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from harness.backends import Compressed
from harness.backends._common.linears import LinearBackend
from harness.backends._common.stacks import merge_stacks
from harness.backends._common.weights import Replacing, name_module_in_errors, untie_head
from harness.numerics.named_formats import Bits
from harness.records import Entry, ModuleFormat, Note, NumberFormat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear

MOST_NAMED = 64
"""How many modules the note about missing gradients names."""
Share = Annotated[float, Field(ge=0, le=0.5)]


class BitsOverride(Entry):
    """Bits for the modules that match."""

    modules: tuple[str, ...] = Field(min_length=1, examples=[["*.down_proj"]])
    """Patterns of module names, with * for any part."""
    bits: Bits
    """Bits per code of these modules."""


class DenseAndSparse(LinearBackend):
    """Quantizes with one codebook per output channel and keeps the most important weights exact (SqueezeLLM).

    The codebook minimises the squared error weighted by the Fisher information of each weight: the mean over the
    calibration documents of the squared gradient of a document's log-likelihood. The largest weights, and those with
    the most Fisher information, stay exact. Needs one float32 per quantized weight in memory, in addition to the model.
    Kim et al. 2023 (arXiv 2306.07629). The values are held in the model's own dtype (the kernel is simulated);
    codebooks and sparse values are counted as 16 bits each.
    """

    quantizes = ("weights",)
    takes_experts = True
    needs_calibration = True

    bits: Bits
    """Bits per code; a codebook has 2^bits values."""
    outliers: Share = 0.004
    """Share (0 to 1) of the weights of a layer that stay exact because of their size."""
    sensitive: Share = 0.0005
    """Share (0 to 1) of the weights of a layer that stay exact because of their Fisher information."""
    overrides: tuple[BitsOverride, ...] = ()
    """Bits for some modules; if several match, the last one counts."""

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Replace the weight of every linear layer that is not skipped; raises BackendError naming the
        module."""
        from harness.modules.linears import matrices, weight_of
        from harness.modules.transforms.sensitivity import fisher_diagonal
        from harness.modules.transforms.single_changes import group_by_weight
        from harness.numerics.decomposition import decompose
        from harness.numerics.formats import check_tensor

        chosen = self.select_layers(model)
        for name, module in matrices(model):  # A weight that is not finite spoils the gradients of all others.
            with name_module_in_errors(self, name):
                check_tensor(weight_of(module))
        fisher = fisher_diagonal(model, dict(chosen), calibration)
        flat = [name for name, fisher_OI in fisher.items() if not bool(fisher_OI.any())]
        replacing, described = Replacing(), dict[str, ModuleFormat]()
        for unit in group_by_weight(chosen):
            first = unit.names[0]
            bits = self._bits_of(first)
            with name_module_in_errors(self, first):
                parts = decompose(weight_of(unit.modules[0]), fisher[first], bits, self.outliers, self.sensitive)
            for name, module in zip(unit.names, unit.modules, strict=True):
                if not replacing.replace_if_shared(module):
                    replacing.replace(module, parts.values)
                described[name] = self._describe(name, module, bits, parts.sparse)
        untie_head(model, described)
        return Compressed(model, merge_stacks(described[name] for name, _ in chosen), notes=_notes(flat))

    def _bits_of(self, name: str) -> int:
        from harness.modules.experts import stack_name

        name = stack_name(name)
        matching = [o.bits for o in self.overrides if any(fnmatchcase(name, pattern) for pattern in o.modules)]
        return matching[-1] if matching else self.bits

    def _patterns(self) -> Iterator[str]:
        yield from super()._patterns()
        for override in self.overrides:
            yield from override.modules

    def _describe(self, name: str, module: Linear, bits: int, sparse: int) -> ModuleFormat:
        from harness.modules.linears import class_of, weight_of
        from harness.numerics.decomposition import stored_bits

        weight, bias = weight_of(module), module.bias
        stored = stored_bits((weight.shape[0], weight.shape[1]), bits, sparse)
        return ModuleFormat(
            module=name,
            type=class_of(module),
            parameters=weight.numel() + (0 if bias is None else bias.numel()),
            stored_bytes=-(-stored // 8) + (0 if bias is None else bias.numel() * bias.element_size()),
            bits_per_weight=stored / weight.numel(),
            format=NumberFormat(type="codebook", bits=bits, granularity="channel", sparse=bool(sparse)),
            kernel="simulated",
            backend=self.kind,
        )


def _notes(flat: Sequence[str]) -> tuple[Note, ...]:
    if not flat:
        return ()
    from harness.modules.experts import format_names

    listed = format_names(flat[:MOST_NAMED]) + (" …" if len(flat) > MOST_NAMED else "")
    text = (
        f"{len(flat)} modules have no gradient on the calibration documents ({listed}); all their weights were "
        "treated as equally sensitive (no document reaches them, or an earlier step rounds their outputs)"
    )
    return (Note(topic="sensitivity", text=text, level="warn"),)
