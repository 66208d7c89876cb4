"""Takes several models through a batch in turns, module by module, so that values meet while they are in the cache.

    reference ─ tap ─▶ each variant, to the same tap ─▶ reference ─ next tap ─▶ each variant ─▶ …

One after the other, the outputs of all the reference's modules would have to be kept until the last variant is through:
more memory than both forward passes take, read back from it once more. In turns, an output is needed until the variants
reach it, which is next. Nothing else changes: every module computes the same, and one at a time.

The stacks of the forward passes are kept by greenlets in one thread, so that all share its settings: a model that
changes one of them (autocast, say) across a tap would change it for the others, and cannot take turns.
"""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn

from harness.lockstep.hooks import ActiveSide, Place
from harness.lockstep.recording import REFERENCE
from harness.system.foreign import contain

R = TypeVar("R")
DEVICES = ("cpu", "cuda")


class CannotTakeTurnsError(Exception):
    """A model changes a setting of the thread while taps are called."""


class Turns(ActiveSide):
    """Which side is active, and which places each has passed while they take turns."""

    def __init__(self) -> None:
        super().__init__()
        self._main: Any = None
        self._passed: dict[int, Counter[Place]] = {}
        self._settings: tuple[object, ...] = ()

    def take(self, calls: Mapping[int, Callable[[], R]], names: Mapping[int, str]) -> dict[int, R]:
        """Run the models of all sides in turns, the reference first. names: for errors.

        Raises CannotTakeTurnsError, and what the models raise.
        """
        self._main, self._passed, self._settings = getcurrent(), {side: Counter() for side in calls}, _read_settings()
        running = {side: greenlet(calls[side]) for side in sorted(calls)}
        for each in running.values():
            each.gr_context = contextvars.copy_context()
        found: dict[int, R] = {}
        try:
            while running:
                for side, each in list(running.items()):
                    self.side = side
                    with contain(f"{names[side]}: its forward pass"):
                        result = each.switch()
                    if each.dead:
                        found[side] = result
                        del running[side], self._passed[side]
                        self._check_settings()
        finally:
            self.side = self._main = None
            for each in running.values():
                each.throw(GreenletExit)
        return found

    def arrive(self, side: int, place: Place) -> None:
        """A variant waits until the reference has passed the place as often as it will have, or is through."""
        if self._main is None or side == REFERENCE or place[1] is None:
            return
        self._passed[side][place] += 1
        while REFERENCE in self._passed and self._passed[REFERENCE][place] < self._passed[side][place]:
            self._yield()

    def leave(self, side: int, place: Place) -> None:
        """After the reference it is the variants' turn."""
        if self._main is not None and side == REFERENCE:
            self._passed[side][place] += 1
            self._yield()

    def _yield(self) -> None:
        self._check_settings()
        self._main.switch()

    def _check_settings(self) -> None:
        if _read_settings() != self._settings:
            raise CannotTakeTurnsError


def share_modules(models: Sequence[nn.Module]) -> bool:
    """Whether any module belongs to several models, or a model is there twice."""
    ids = [id(module) for model in models for module in model.modules()]
    return len(set(ids)) < len(ids)


def _read_settings() -> tuple[object, ...]:
    """What a forward pass may set for its thread, or for all."""
    return (
        threading.get_ident(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        *(torch.is_autocast_enabled(device) for device in DEVICES),
    )
