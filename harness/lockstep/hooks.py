"""Hooks that are attached to a model once and act only while their side is active."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from harness.lockstep.recording import CallTap, Tap

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


class ActiveSide:
    """The side that is running; None: no hook acts. Both sides may be the same modules."""

    def __init__(self) -> None:
        self.side: int | None = None

    @contextmanager
    def activate(self, side: int) -> Iterator[None]:
        """Let the hooks of one side act within the context."""
        self.side = side
        try:
            yield
        finally:
            self.side = None


def first_tensor(value: object) -> Tensor | None:
    """The main tensor of a module's output: the output itself, or the first of a tuple (attention gives a pair)."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((found for item in value if (found := first_tensor(item)) is not None), None)
    return None


def first_input(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
    """The first tensor among a module's arguments."""
    return first_tensor((arguments, dict(named)))


@contextmanager
def attach_taps(
    model: nn.Module,
    side: int,
    stage: ActiveSide,
    inputs: Mapping[str, Sequence[Tap]],
    outputs: Mapping[str, Sequence[Tap]],
    calls: Sequence[tuple[str, CallTap]] = (),
) -> Iterator[None]:
    """Call the taps, by module name, with inputs and outputs of modules while ``side`` is active in ``stage``."""
    with ExitStack() as stack:
        for name, tap in calls:
            whole = _call_hook(side, stage, tap)
            stack.callback(model.get_submodule(name).register_forward_pre_hook(whole, with_kwargs=True).remove)
        for name, taps in inputs.items():
            hook = _input_hook(side, stage, taps)
            # Before other hooks: a module may round its input, and taps need the original.
            handle = model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        for name, taps in outputs.items():
            stack.callback(model.get_submodule(name).register_forward_hook(_output_hook(side, stage, taps)).remove)
        yield


def _input_hook(side: int, stage: ActiveSide, taps: Sequence[Tap]) -> Hook:
    def hook(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if stage.side == side:
            _call_taps(taps, first_input(arguments, named))

    return hook


def _call_hook(side: int, stage: ActiveSide, tap: CallTap) -> Hook:
    def hook(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if stage.side == side:
            tap(arguments, named)

    return hook


def _output_hook(side: int, stage: ActiveSide, taps: Sequence[Tap]) -> Callable[[nn.Module, object, object], None]:
    def hook(_module: nn.Module, _arguments: object, output: object) -> None:
        if stage.side == side:
            _call_taps(taps, first_tensor(output))

    return hook


def _call_taps(taps: Sequence[Tap], value: Tensor | None) -> None:
    if value is None:
        raise TypeError("an observed module was called without a tensor, although it had one in the survey")
    flat = value.reshape(-1, value.shape[-1])
    for tap in taps:
        tap(flat)
