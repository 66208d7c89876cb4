"""Takes several models through a batch in turns, block by block, so that few of their outputs have to be kept.

    reference ─ block 1 ─▶ each variant ─ block 1 ─▶ reference ─ block 2 ─▶ each variant ─ block 2 ─▶ …

One after the other, the outputs of all the reference's modules would have to be kept until the last variant is through:
more memory than the forward passes themselves take, which is then read once more. In turns, those of one block are
kept. Nothing else changes: every module computes the same, and one at a time.

The stacks of the forward passes are kept by greenlets in one thread, so that all share its settings, and what a library
replaces while its model runs (an attention function, say) would be replaced for all. So turns change between blocks
only, settings are looked at whenever they do, and the first tokens must give the same bits in turns and alone.
"""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from harness.lockstep.hooks import ActiveSide
from harness.lockstep.recording import REFERENCE, Layout
from harness.system.foreign import contain, guard

if TYPE_CHECKING:
    from harness.lockstep.decoder import Decoder

DEVICES = ("cpu", "cuda")
Calls = Mapping[int, Callable[[], Tensor]]
"""The forward pass of each side."""


class CannotTakeTurnsError(Exception):
    """A model changes a setting of the thread from one block to the next."""


class Turns(ActiveSide):
    """Which side is active, and which blocks each has passed while they take turns.

    models: of every side. blocks: of every side, its name of each block, and the reference's.
    """

    def __init__(self, models: Mapping[int, nn.Module], blocks: Mapping[int, Mapping[str, str]]) -> None:
        super().__init__()
        self._models, self._blocks = models, blocks
        self._main: Any = None
        self._running: set[int] = set()
        self._passed: Counter[str] = Counter()
        self._entered: dict[int, Counter[str]] = {}
        self._last = 0
        self._settings: tuple[object, ...] = ()

    @contextmanager
    def attach(self) -> Iterator[None]:
        """Let the blocks of all models tell where they are. To be attached after the taps."""
        with ExitStack() as stack:
            for side, blocks in self._blocks.items():
                for own, name in blocks.items():
                    module = self._models[side].get_submodule(own)
                    if side == REFERENCE:
                        handle = module.register_forward_hook(partial(self._leave, name))
                    else:
                        handle = module.register_forward_pre_hook(partial(self._enter, side, name), prepend=True)
                    stack.callback(handle.remove)
            yield

    def work_for(self, calls: Calls) -> bool:
        """Whether these passes give the same bits in turns and alone."""
        with self.attach():
            self._passed.clear()
            alone = {side: call() for side, call in calls.items()}
            self._last = self._passed.total()
            try:
                together = self.take(calls, dict.fromkeys(calls, "a side"))
            except Exception:  # noqa: BLE001 - a model may raise anything where something was replaced under it
                return False
        return all(torch.equal(alone[side], together[side]) for side in calls)

    def take(self, calls: Calls, names: Mapping[int, str]) -> dict[int, Tensor]:
        """What the calls of all sides return, the reference's first in each turn. names: for errors.

        Raises CannotTakeTurnsError, and what the models raise.
        """
        self._main, self._settings = getcurrent(), _read_settings()
        self._passed, self._entered = Counter(), {side: Counter() for side in calls}
        waiting = {side: greenlet(calls[side]) for side in sorted(calls)}
        self._running = set(waiting)
        for each in waiting.values():
            each.gr_context = contextvars.copy_context()
        found: dict[int, Tensor] = {}
        try:
            while waiting:
                for side, each in list(waiting.items()):
                    self.side = side
                    with contain(f"{names[side]}: its forward pass"):
                        result = each.switch()
                    if each.dead:
                        found[side] = result
                        del waiting[side]
                        self._running.remove(side)
                        self._check_settings()
        finally:
            self.side = self._main = None
            for each in waiting.values():
                each.throw(GreenletExit)
        return found

    def _enter(self, side: int, block: str, *_: object) -> None:
        """A variant waits before a block until the reference has passed it as often, or is through."""
        if self._main is not None:
            self._entered[side][block] += 1
            while REFERENCE in self._running and self._passed[block] < self._entered[side][block]:
                self._change()

    def _leave(self, block: str, *_: object) -> None:
        """After a block of the reference it is the variants' turn; after the last one it goes on to its end."""
        self._passed[block] += 1
        if self._main is not None and self._passed.total() < self._last:
            self._change()

    def _change(self) -> None:
        self._check_settings()
        self._main.switch()

    def _check_settings(self) -> None:
        if _read_settings() != self._settings:
            raise CannotTakeTurnsError


def find_turns(sides: Sequence[Decoder], layout: Layout, ids_1T: Tensor) -> Turns | None:
    """The turns that the sides take, the reference first; None if they must run one after the other."""
    decoders = dict(enumerate(sides, start=REFERENCE))
    turns = plan_turns({side: decoder.modules for side, decoder in decoders.items()}, layout)
    calls = {side: partial(each.states, ids_1T.to(each.device), None) for side, each in decoders.items()}
    with guard(f"forward passes of {', '.join(each.name for each in sides)}", patience=len(sides)):
        return turns if turns and turns.work_for(calls) else None


def plan_turns(models: Mapping[int, nn.Module | None], layout: Layout) -> Turns | None:
    """Turns for some models, by the layout of a pass; None if they share modules, or compare some between blocks."""
    known = {side: model for side, model in models.items() if model is not None}
    ids = [id(module) for model in known.values() for module in model.modules()]
    blocks = {site.module: site.depth for site in layout.outputs if site.kind == "block"}
    if len(known) < len(models) or len(set(ids)) < len(ids) or not blocks:
        return None
    for site in layout.outputs:
        inside = any(site.module.startswith(f"{block}.") for block in blocks) or site.module in blocks
        if not inside and min(blocks.values()) < site.depth < max(blocks.values()):
            return None
    names = {side: {_find(layout, side, block): block for block in blocks} for side in known}
    return Turns(known, {side: {own: name for own, name in each.items() if own} for side, each in names.items()})


def _find(layout: Layout, side: int, block: str) -> str:
    return block if side == REFERENCE else layout.find_in_variant(side, block) or ""


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
