"""Round-to-nearest weight quantization."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from harness.backends import Backend, Compressed
from harness.errors import BackendError
from harness.records import ModuleFormat

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.models.linears import Linear
    from harness.numerics.integer import Scheme

DEFAULT_GROUP_SIZE = 32


class RoundToNearest(Backend):
    """Rounds linear weights to the nearest point of an integer grid, a scale per tensor, channel or group.

    Scales come from the smallest and largest weight of what shares them; nothing is calibrated. The rounded
    values are held in the model's own dtype (the kernel is simulated), and the bits that codes, 16-bit scales
    and zero points would take are reported. Embeddings are never touched; a head tied to an embedding gets a
    weight of its own.
    """

    bits: Annotated[int, Field(ge=2, le=8)]
    """Bits of one code."""
    symmetric: bool = True
    """Codes around 0 without a zero point; false: the range from the smallest to the largest weight, with 0
    in it."""
    granularity: Literal["tensor", "channel", "group"] = "group"
    """What shares a scale: the whole weight, an output channel, or ``group_size`` neighbours in an output
    channel."""
    group_size: Annotated[int, Field(ge=1)] | None = None
    """Inputs that share a scale, 32 if not given; the last group of a channel may be shorter. Only with
    ``group``."""
    full_range: bool = False
    """Symmetric codes from −2^(bits−1) instead of −2^(bits−1)+1."""
    skip: tuple[str, ...] = ("lm_head",)
    """Names or patterns of linear layers to leave alone; ``lm_head`` is the output head, whatever it is
    called."""

    @model_validator(mode="after")
    def _consistent(self) -> RoundToNearest:
        if self.group_size is not None and self.granularity != "group":
            raise ValueError(f"group_size needs granularity: group, not {self.granularity}")
        if self.full_range and not self.symmetric:
            raise ValueError("full_range needs symmetric: true; asymmetric grids always use all codes")
        return self

    def scheme(self) -> Scheme:
        """The integer grid that the fields describe."""
        from harness.numerics.integer import Scheme

        size = (self.group_size or DEFAULT_GROUP_SIZE) if self.granularity == "group" else None
        return Scheme(self.bits, self.symmetric, self.granularity, size, self.full_range)

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Replace the weight of every linear layer that is not skipped; raises BackendError naming the
        module."""
        from harness.models.linears import output_head, replace_weight, weight_of
        from harness.numerics.integer import dequantize, quantize

        scheme = self.scheme()
        described: list[ModuleFormat] = []
        replaced: dict[int, tuple[Tensor, Parameter]] = {}
        for name, module in self._chosen(model):
            old = module.weight
            if id(old) in replaced:  # Layers that share one weight go on sharing it.
                module.weight = replaced[id(old)][1]
            else:
                weight = weight_of(module)
                try:
                    rounded = dequantize(quantize(weight, scheme), weight.dtype)
                except ValueError as error:
                    raise BackendError(
                        f"round_to_nearest: {name}: {error}; nothing sensible can be rounded"
                    ) from error
                # The old parameter is kept, so that its id is not given to another one.
                replaced[id(old)] = (old, replace_weight(module, rounded))
            described.append(self._describe(name, module, scheme))
        head = output_head(model)
        if head is not None and head in {module.module for module in described}:
            model.config.tie_word_embeddings = False  # Else a later tie_weights() would undo the rounding.
        return Compressed(model, tuple(described))

    def _chosen(self, model: PreTrainedModel) -> list[tuple[str, Linear]]:
        from harness.models.linears import linears, output_head

        everything, head = list(linears(model)), output_head(model)
        used: set[str] = set()
        chosen = []
        for name, module in everything:
            called = {name, "lm_head"} if name == head else {name}
            matching = {
                pattern for pattern in self.skip if any(fnmatchcase(each, pattern) for each in called)
            }
            used |= matching
            if not matching:
                chosen.append((name, module))
        if unused := [pattern for pattern in self.skip if pattern not in used and pattern != "lm_head"]:
            known = ", ".join(name for name, _ in everything[:8]) or "none"
            raise BackendError(
                f"round_to_nearest: skip: {unused} match no linear layer of {type(model).__name__} (it has "
                f"{known} …)"
            )
        if not chosen:
            raise BackendError(
                f"round_to_nearest: {len(everything)} linear layers in {type(model).__name__}, none left to "
                "quantize"
            )
        return chosen

    def _describe(self, name: str, module: Linear, scheme: Scheme) -> ModuleFormat:
        from harness.models.linears import weight_of
        from harness.numerics.integer import stored_bits

        weight, bias = weight_of(module), module.bias
        bits = stored_bits(tuple(weight.shape), scheme)
        return ModuleFormat(
            module=name,
            type=type(module).__name__,
            parameters=weight.numel() + (0 if bias is None else bias.numel()),
            stored_bytes=-(-bits // 8) + (0 if bias is None else bias.numel() * bias.element_size()),
            bits_per_weight=bits / weight.numel(),
            format=f"int{self.bits}",
            granularity=self.granularity,
            group_size=scheme.group_size,
            symmetric=self.symmetric,
            kernel="simulated",
            backend="round_to_nearest",
        )
