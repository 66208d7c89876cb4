"""Memory of a training as it is: bytes of tensors, and of what a forward pass keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from harness.modules.inspection import named_tensors
from harness.records.training import Memory
from harness.training.memory import bytes_of_moments, shapes_of


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of tensors, each counted once."""
    return sum({_place(each): each.untyped_storage().nbytes() for each in tensors}.values())


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and what libraries keep beside packed weights."""
    return [*model.parameters(), *model.buffers(), *(tensor for _, tensor in named_tensors(model))]


class SavedTensors:
    """Bytes of the tensors that autograd kept, apart from those that exist anyway."""

    def __init__(self, apart: Iterable[Tensor]) -> None:
        self._apart = {_place(each) for each in apart}
        self._kept: dict[int, int] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count in every forward pass inside."""
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            yield

    @property
    def bytes(self) -> int:
        """Of all storages that were kept."""
        return sum(self._kept.values())

    def _keep(self, tensor: Tensor) -> Tensor:
        if (place := _place(tensor)) not in self._apart:
            self._kept[place] = tensor.untyped_storage().nbytes()
        return tensor


def list_memory(
    student: nn.Module,
    teacher: nn.Module,
    trainable: Iterable[nn.Parameter],
    states: Iterable[Tensor],
    saved: int,
    documents: int,
    tokens: int,
    keeps: int = 0,
    moment_bits: int = 32,
) -> tuple[Memory, ...]:
    """Every part after the first step. saved: bytes that its forward pass kept, for ``documents`` of ``tokens``, of
    which ``keeps`` are no activations. moment_bits: of one moment of the optimizer."""
    parameters = list(trainable)
    places, config = {_place(each) for each in parameters}, getattr(student, "config", None)
    base = {_place(each): each for each in tensors_of(student) if _place(each) not in places}.values()
    size = sum(each.numel() for each in parameters)
    shapes = shapes_of(config.get_text_config()) if config is not None else None
    activations = shapes.activations(documents, tokens) + keeps if shapes else None
    return (
        Memory("base", sum(each.numel() * each.element_size() for each in base), bytes_of(base)),
        Memory("teacher", sum(each.numel() * each.element_size() for each in teacher.parameters()), _sum(teacher)),
        Memory("trainable", 4 * size, bytes_of(parameters)),
        Memory("gradients", 4 * size, bytes_of(each.grad for each in parameters if each.grad is not None)),
        Memory("optimizer", bytes_of_moments(size, moment_bits), bytes_of(states)),
        Memory("activations", activations, saved),
    )


def _sum(model: nn.Module) -> int:
    return bytes_of(tensors_of(model))


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
