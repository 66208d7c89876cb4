"""One-at-a-time sensitivity: the KL or output error caused by quantizing a single module.

Legend: T positions of a document, V vocabulary, U units, C changes, N rows of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.modules.decoder_layers import decoder_blocks, observe_inputs
from harness.modules.experts import ExpertMatrix, stack_name
from harness.modules.linears import Linear, replace_weight, weight_of

Change = Callable[[Tensor], Tensor]
"""Maps a weight [O, I] to its changed version [O, I] in the same dtype."""


@dataclass(frozen=True)
class ChangedWeight:
    """Linear layers changed together: those that share one weight (usually one), or all matrices of an expert stack."""

    names: tuple[str, ...]
    modules: tuple[Linear, ...]

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The distinct weights [O, I]."""
        return tuple({id(module.weight): weight_of(module) for module in self.modules}.values())

    @property
    def callers(self) -> tuple[nn.Module, ...]:
        """The modules whose forward uses the unit."""
        owners = [module.owner if isinstance(module, ExpertMatrix) else module for module in self.modules]
        return tuple({id(module): module for module in owners}.values())


def group_by_weight(modules: Sequence[tuple[str, Linear]]) -> list[ChangedWeight]:
    """Group modules that share one weight, in the order of the first module of each group."""
    groups: dict[int, list[tuple[str, Linear]]] = {}
    for name, module in modules:
        groups.setdefault(id(module.weight), []).append((name, module))
    return [
        ChangedWeight(tuple(name for name, _ in group), tuple(module for _, module in group))
        for group in groups.values()
    ]


def merge_stacks(units: Sequence[ChangedWeight]) -> list[ChangedWeight]:
    """Merge the units of each expert stack into one, in the order of the first unit of each stack."""
    groups: dict[str, list[ChangedWeight]] = {}
    for unit in units:
        groups.setdefault(stack_name(unit.names[0]), []).append(unit)
    return [
        ChangedWeight(
            tuple(name for unit in group for name in unit.names), tuple(m for unit in group for m in unit.modules)
        )
        for group in groups.values()
    ]


def measure_divergences(
    model: PreTrainedModel, units: Sequence[ChangedWeight], changes: Sequence[Change], calibration: Sequence[Tensor]
) -> Tensor:
    """KL(model ‖ model with one unit changed) in nats per token [U, C], float64.

    Means over all predicted tokens (the last position of a document predicts none of them); infinite if the changed
    model gives NaN. Cost: U · C forward passes per document, each starting at the block that holds the unit: earlier
    blocks replay their outputs of the unchanged model. A document that never reaches a unit (an expert, say) costs
    nothing and counts as 0. Memory: the logits and block outputs of one document, and one changed weight. The model is
    unchanged afterwards.
    """
    stack = decoder_blocks(model)[1]
    totals, tokens = torch.zeros(len(units), len(changes), dtype=torch.float64), 0
    trusted: dict[int, bool] = {0: True}
    with torch.no_grad():
        for ids in calibration:
            document = _ChangeRunner(model, stack, units, ids)
            tokens += len(ids) - 1
            for index, unit in enumerate(units):
                done = document.blocks_before[index]
                if done is None:
                    continue
                if done not in trusted:
                    trusted[done] = document.can_start_behind(done)
                for column, change in enumerate(changes):
                    with apply_change(unit, change):
                        totals[index, column] += document.divergence(done if trusted[done] else 0)
    return (totals / max(tokens, 1)).nan_to_num(nan=torch.inf)


def measure_output_errors(
    model: PreTrainedModel, units: Sequence[ChangedWeight], changes: Sequence[Change], calibration: Sequence[Tensor]
) -> Tensor:
    """Σ‖(W′ − W)x‖² / Σ‖Wx‖² over all inputs x of a unit [U, C], float64: the relative error of its own output.

    Cost: one forward pass per document, plus C + 1 products of each unit. 0 for a unit that no document reaches or
    whose output is 0.
    """
    errors, sizes = torch.zeros(len(units), len(changes), dtype=torch.float64), torch.zeros(len(units)).double()

    def accumulate(index: int, module: Linear, input_NI: Tensor) -> None:
        weight, input_NI = weight_of(module), input_NI.float()
        sizes[index] += (input_NI @ weight.float().T).square().sum(dtype=torch.float64).cpu()
        for column, change in enumerate(changes):
            lost = change(weight).float() - weight.float()
            errors[index, column] += (input_NI @ lost.T).square().sum(dtype=torch.float64).cpu()

    taps = {
        name: partial(accumulate, index, module)
        for index, unit in enumerate(units)
        for name, module in zip(unit.names, unit.modules, strict=True)
    }
    observe_inputs(model, taps, calibration)
    return (errors / torch.where(sizes > 0, sizes, 1.0)[:, None]).nan_to_num(nan=torch.inf)


@contextmanager
def apply_change(unit: ChangedWeight, change: Change) -> Iterator[None]:
    """Replace the weight of a unit within the context."""
    if isinstance(first := unit.modules[0], ExpertMatrix):
        kept = first.stack.detach().clone()
        try:
            for module in unit.modules:
                replace_weight(module, change(weight_of(module)))
            yield
        finally:
            first.stack.detach().copy_(kept)
        return
    old = unit.modules[0].weight
    new = replace_weight(unit.modules[0], change(weight_of(unit.modules[0])))
    try:
        for module in unit.modules:
            module.weight = new
        yield
    finally:
        for module in unit.modules:
            module.weight = old


class _ChangeRunner:
    """One document: the outputs of the unchanged model, and the KL of the changed model from these."""

    def __init__(
        self, model: PreTrainedModel, stack: nn.ModuleList, units: Sequence[ChangedWeight], ids: Tensor
    ) -> None:
        self._model, self._stack, self._ids = model, stack, ids[None].to(model.device)
        self._outputs: list[Any] = []
        self.blocks_before: list[int | None] = [None] * len(units)
        """Number of blocks that had finished when each unit was first called; None if it never was."""
        with ExitStack() as hooks:
            for block in stack:
                hooks.callback(block.register_forward_hook(self._store_output).remove)
            for index, unit in enumerate(units):
                for module in unit.callers:
                    hooks.callback(module.register_forward_pre_hook(partial(self._store_first_call, index)).remove)
            self._reference_TV = self._log_probabilities()

    def divergence(self, done: int) -> float:
        """Σ over tokens of KL(unchanged ‖ current model), which differs only after the first ``done`` blocks."""
        with self._replay_outputs(done):
            now_TV = self._log_probabilities()
        p_TV = self._reference_TV.exp()
        # Tokens with zero probability in the unchanged model contribute 0, although their logarithm is −infinity.
        return float(torch.where(p_TV > 0, p_TV * (self._reference_TV - now_TV), 0.0).sum())

    def can_start_behind(self, done: int) -> bool:
        """Whether replaying the outputs of ``done`` blocks suffices: some models pass on more than those."""
        with self._replay_outputs(done):
            try:
                return torch.equal(self._log_probabilities(), self._reference_TV)
            except Exception:  # noqa: BLE001 - missing state may raise anything; a pass from the start needs none.
                return False

    def _log_probabilities(self) -> Tensor:
        logits_TV: Tensor = self._model(input_ids=self._ids, use_cache=False).logits[0, :-1]
        return logits_TV.double().log_softmax(-1)

    @contextmanager
    def _replay_outputs(self, done: int) -> Iterator[None]:
        """Let the first ``done`` blocks return their recorded outputs without computing anything."""
        blocks = list(self._stack)[:done]
        before = [vars(block).get("forward") for block in blocks]
        try:
            for block, output in zip(blocks, self._outputs, strict=False):
                vars(block)["forward"] = partial(_return_recorded, output)
            yield
        finally:
            for block, forward in zip(blocks, before, strict=True):
                if forward is None:
                    vars(block).pop("forward", None)
                else:
                    vars(block)["forward"] = forward

    def _store_output(self, _block: nn.Module, _arguments: Any, output: Any) -> None:
        self._outputs.append(output)

    def _store_first_call(self, index: int, _module: nn.Module, _arguments: Any) -> None:
        if self.blocks_before[index] is None:
            self.blocks_before[index] = len(self._outputs)


def _return_recorded(output: Any, *_arguments: Any, **_named: Any) -> Any:
    return output
