"""Runs a model on a batch and keeps what objectives read: last hidden states, outputs of blocks, inputs of attention.

Legend: B texts, T positions, D hidden size, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from harness.errors import BackendError
from harness.lockstep.decoder import Decoder
from harness.models.language_model import TransformersModel
from harness.modules.layer_pairs import block_numbers
from harness.training.examples import Batch
from harness.training.objectives._base import Reads
from harness.training.objectives._outputs import AttentionInputs, Outputs


class Reader:
    """A model of transformers, run so that the logits of a whole batch are never in memory.

    reads: what is kept beside the last hidden states.
    """

    def __init__(self, name: str, model: PreTrainedModel, reads: Collection[Reads] = ()) -> None:
        self.name, self._model, self._reads = name, model, frozenset(reads)
        self._language_model = TransformersModel(model)
        self._decoder = Decoder(name, self._language_model)
        self._split = False

    def read(self, batch: Batch) -> Outputs:
        """Run a batch once, with gradients where they are enabled.

        Raises ModelError for a model that cannot be called, and BackendError for attention that cannot be read.
        """
        if not self._split:
            with torch.no_grad():
                self._decoder.prepare(batch.ids[:1])
            self._split = True
        blocks, attention = list[Tensor](), list[AttentionInputs]()
        with self._watch(blocks, attention):
            states_BTD = self._decoder.states(batch.ids, None).unflatten(0, batch.ids.shape)
        if "attention" in self._reads and not attention:
            raise BackendError(
                f"distill: {self.name}: its attention is not torch's scaled_dot_product_attention, so its inputs "
                "cannot be read; write attention: sdpa for the reference, or match: hidden"
            )
        return Outputs(
            batch.select(states_BTD),
            self._decoder.logits,
            self._language_model.vocabulary,
            tuple(blocks),
            tuple(attention),
        )

    @contextmanager
    def _watch(self, blocks: list[Tensor], attention: list[AttentionInputs]) -> Iterator[None]:
        """Fill the lists with what is read in the forward pass inside."""
        with ExitStack() as stack:
            for name in block_numbers(self._model) if "blocks" in self._reads else ():
                block = self._model.get_submodule(name)
                stack.callback(block.register_forward_hook(_keep_output(blocks)).remove)
            if "attention" in self._reads:
                stack.enter_context(_AttentionWatch(attention))
            yield


class _AttentionWatch(TorchFunctionMode):
    """Keeps the inputs of every call of scaled_dot_product_attention, in the order of the calls."""

    def __init__(self, kept: list[AttentionInputs]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is scaled_dot_product_attention:
            query, key, value = (*args, *(named[part] for part in ("query", "key", "value")[len(args) :]))[:3]
            scale = named.get("scale")
            self._kept.append(
                AttentionInputs(query, key, value, query.shape[-1] ** -0.5 if scale is None else float(scale))
            )
        return func(*args, **named)


def _keep_output(kept: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _given: Any, output: Any) -> None:
        kept.append(output if isinstance(output, Tensor) else output[0])

    return hook
