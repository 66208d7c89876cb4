"""QLoRA: adapters trained on a frozen 4-bit base."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from harness.backends import Backend, Compressed, Quantized
from harness.backends._common.linears import LinearBackend, match_modules
from harness.backends._common.training import TrainingBackend
from harness.backends.bitsandbytes import Bitsandbytes
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError
from harness.records import ModuleFormat, Note
from harness.training.memory import FLOAT32, bytes_of_base, bytes_of_moments

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.linears import Linear
    from harness.training.data import Training
    from harness.training.examples import Batch
    from harness.training.memory import Shapes

FOLDER = "adapter"
"""Of the trained adapter, beside the states of the training."""
MOMENT_BITS: Mapping[str, int | None] = {"adamw": None, "paged_adamw": 32, "paged_adamw_8bit": 8}
"""Of the paged optimizers of bitsandbytes; None: torch's own."""
SCALES = 256
"""Of 8 bits, that share one of 32 bits under double quantization."""
BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Weights that share a scale in bitsandbytes."""


class Qlora(LinearBackend, TrainingBackend):
    """Rounds linear weights to NF4, freezes them, and trains LoRA or DoRA adapters beside them (QLoRA).

    What would be shipped is the 4-bit base and the adapter, whose tensors have the model's dtype; both count in sizes,
    and the artifact holds both. The loss is the cross-entropy of the training texts. Adapters are put on the rounded
    linear layers; stacked experts are rounded, but get none. Dettmers et al. 2023, arXiv 2305.14314.
    """

    requires = ("peft",)
    extra = "qlora"

    base: Literal["simulated", "bitsandbytes"] = "simulated"
    """What holds the 4-bit weights: floats on the grid of NF4, on any device and for any architecture, or the packed
    codes and kernels of the library bitsandbytes."""
    group_size: Annotated[int, Field(ge=1, examples=[64])] = 64
    """Inputs that share a scale; with bitsandbytes 64, 128 … 4096 neighbours in memory order."""
    double_quantize: bool = True
    """Quantize the scales to 8 bits as well."""
    targets: tuple[str, ...] = Field(default=(), examples=[["*.q_proj", "*.v_proj"]])
    """Names or glob patterns of the rounded layers that get an adapter; empty (the default): all."""
    r: Annotated[int, Field(ge=1, examples=[16])] = 16
    """Rank of the adapters."""
    alpha: Annotated[float, Field(gt=0, examples=[32.0])] = 32.0
    """The product of both matrices of an adapter is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inputs of an adapter that a training step leaves out."""
    dora: bool = False
    """Train the length of every output channel apart from its direction (DoRA, arXiv 2402.09353)."""
    optimizer: Literal["adamw", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """AdamW of torch with moments of float32; of bitsandbytes with moments of float32 or 8 bits, which a GPU moves to
    the memory of the processor where its own runs out (without a GPU nothing is moved)."""
    merge: bool = False
    """Add the adapter to the weights, which are then floats of the model's dtype and no longer 4 bits; a later step may
    quantize them again. Otherwise it stays beside them."""

    @model_validator(mode="after")
    def _check_base(self) -> Qlora:
        if self.base == "bitsandbytes" and self.group_size not in BLOCKS:
            raise ValueError(f"group_size of bitsandbytes is one of {', '.join(map(str, BLOCKS))}")
        return self

    @property
    def puts_on_grid(self) -> tuple[Quantized, ...]:
        """Weights, unless they end as floats."""
        return () if self.merge else ("weights",)

    @property
    def leaves_adapter(self) -> bool:
        """Unless it is merged."""
        return not self.merge

    @property
    def libraries(self) -> tuple[str, ...]:
        """bitsandbytes where the base or the optimizer is its own."""
        theirs = self.base == "bitsandbytes" or self.optimizer != "adamw"
        return (*self.requires, "bitsandbytes") if theirs else self.requires

    def forecast_memory(self, parameters: int, width: int, shapes: Shapes | None) -> dict[str, int]:
        """The base, in floats of ``width`` bytes where it is simulated, and adapters on every linear layer: patterns
        are resolved when the model is there."""
        if shapes is None:
            return {}
        packed = shapes.linear_weights if self.base == "bitsandbytes" else 0
        bits = 4 + (8 + 32 / SCALES if self.double_quantize else 32) / self.group_size
        trained = shapes.adapter_parameters(self.r, self.dora)
        return {
            "base": bytes_of_base(packed, bits) + width * (parameters - packed),
            "trainable": FLOAT32 * trained,
            "gradients": FLOAT32 * trained,
            "optimizer": bytes_of_moments(trained, MOMENT_BITS[self.optimizer] or 32),
        }

    def train(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, training: Training) -> Compressed:
        """Round, insert adapters, train them, and leave them beside the base or merge them.

        Raises BackendError naming the module that cannot be rounded or is packed already, and for patterns that match
        no rounded layer.
        """
        from harness.backends._common.lora import Shape, insert_adapter, make_paged_adamw
        from harness.training.fitting import fit
        from harness.training.loop import Task, Trainable
        from harness.training.precision import refuse_packed

        refuse_packed(self.kind, model)
        dtype = model.dtype
        try:
            rounded = self._base_step().compress(model, tokenizer, ())
        except BackendError as error:
            raise BackendError(f"{self.kind}: the base: {error}") from error
        names = self._choose_targets(rounded.model, [each.module for each in rounded.modules])
        if self.dora:
            self._check_directions(rounded.model, names)
        shape = Shape(self.r, self.alpha, self.dropout, self.dora)
        inserted = insert_adapter(rounded.model, names, shape, training.seed)
        trainable = {name: Trainable(each) for name, each in inserted.parameters.items()}
        bits = MOMENT_BITS[self.optimizer]
        make = partial(make_paged_adamw, bits=bits) if bits else None
        task = Task(
            self.kind,
            inserted.model,
            trainable,
            predict_texts,
            self.settings(),
            make_optimizer=make,
            moment_bits=bits or 32,
        )
        fit(task, self, training)
        size = sum(each.parameter.numel() for each in trainable.values())
        notes = (*rounded.notes, *self._describe_adapter(rounded.modules, names, size, dtype))
        if self.merge:
            return Compressed(inserted.merge(as_floats), notes=notes)
        folder = Path(tempfile.mkdtemp()) if training.cache is None else training.cache / FOLDER
        inserted.write(folder, dtype)
        modules = tuple(each.model_copy(update={"backend": self.kind}) for each in rounded.modules)
        return Compressed(inserted.remove(), modules, adapter=folder, notes=notes)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """The base, as the library that holds it saves it."""
        if self.merge:
            super().save(model, folder)
        else:
            self._base_step().save(model, folder)

    def _base_step(self) -> Backend:
        """The step that rounds the base."""
        chosen: dict[str, Any] = {"only": self.only, "skip": self.skip, "double_quantize": self.double_quantize}
        chosen["group_size"] = self.group_size
        if self.base == "bitsandbytes":
            return Bitsandbytes(method="nf4", **chosen)
        return RoundToNearest(format="nf4", **chosen)

    def _choose_targets(self, model: PreTrainedModel, rounded: Sequence[str]) -> list[str]:
        """The rounded linear layers that get an adapter."""
        from harness.modules.linears import output_head

        modules, head = dict(model.named_modules()), output_head(model)
        known = {name: {name, "lm_head"} if name == head else {name} for name in rounded if name in modules}
        found = {pattern: match_modules(known, pattern) for pattern in self.targets}
        if unused := [pattern for pattern, names in found.items() if not names] or not known:
            raise BackendError(
                f"{self.kind}: {unused if known else 'targets'} match none of the {len(known)} linear layers that are "
                f"rounded ({', '.join([*known][:8])} …)"
            )
        wanted = set().union(*found.values()) if found else known.keys()
        return [name for name in known if name in wanted]

    def _check_directions(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        """Raise BackendError for an output channel of zeros, which has no direction to be trained apart from its
        length."""
        from harness.modules.linears import weight_of

        for name in names:
            lengths_O = weight_of(cast("Linear", as_floats(model.get_submodule(name)))).float().norm(dim=1)
            if zeros := int((lengths_O == 0).sum()):
                raise BackendError(
                    f"{self.kind}: {name}: {zeros} of {len(lengths_O)} output channels are 0 in NF4, and dora needs a "
                    "direction of each; write double_quantize: false, which keeps small scales, or dora: "
                    "false, or leave the layer out of targets"
                )

    def _describe_adapter(
        self, rounded: Sequence[ModuleFormat], names: Sequence[str], size: int, dtype: torch.dtype
    ) -> list[Note]:
        weights = sum(each.parameters for each in rounded)
        kind, precision = "DoRA" if self.dora else "LoRA", str(dtype).removeprefix("torch.")
        text = (
            f"{self.kind}: {kind} of rank {self.r} on {len(names)} of {len(rounded)} rounded modules, {size:,} trained "
            f"parameters beside {weights:,} frozen ones of 4 bits"
        )
        if self.merge:
            text += f"; merged into the weights, which are {precision} now and no longer NF4"
        return [Note(topic="adapter", text=text)]


def predict_texts(student: PreTrainedModel, _teacher: PreTrainedModel, batch: Batch) -> Mapping[str, Tensor]:
    """Cross-entropy of the scored tokens."""
    from harness.training.losses import mean_nll

    return {"nll": mean_nll(batch.logits(student), batch.targets)}


def as_floats(layer: nn.Module) -> nn.Module:
    """A linear layer of floats for one of bitsandbytes, any other as it is."""
    import torch

    held: Any = layer
    if type(layer).__name__ != "Linear4bit":
        return layer
    from bitsandbytes.functional import dequantize_4bit

    new = torch.nn.Linear(held.in_features, held.out_features, bias=held.bias is not None, device="meta")
    values = dequantize_4bit(held.weight.data, held.weight.quant_state)
    new.weight, new.bias = torch.nn.Parameter(values, requires_grad=False), held.bias
    return new
