"""Models that take turns: the order of taps, the same bytes as one after the other, and what ends the turns."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from greenlet import greenlet
from torch import Tensor, nn

from harness.errors import ForeignCodeError
from harness.lockstep import driver, kernels
from harness.lockstep.hooks import attach_taps
from harness.lockstep.kernels import EAGER
from harness.lockstep.module_statistics import row_errors
from harness.lockstep.recording import REFERENCE, Layout, ModuleKind, OutputSite
from harness.lockstep.turns import CannotTakeTurnsError, Turns, plan_turns
from harness.probes import layers
from harness.probes.layers import Layers, _Kept
from tests.helpers.pass_pairs import as_bytes, damaged, gemma2, gpt2, llama, observe

NAMES = {REFERENCE: "reference", 0: "one", 1: "two"}


class Chain(nn.Module):
    """Modules that are called in a given order."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        for name in "abc":
            self.add_module(name, nn.Linear(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)
        return x


def follow(*orders: str, act: Callable[[int, str], None] = lambda side, name: None, blocks: str = "abc") -> list[str]:
    """The taps on outputs of several chains, the reference's first, in the order in which they are called."""
    said: list[str] = []

    def tap(side: int, name: str) -> Callable[[Tensor], None]:
        def called(_: Tensor) -> None:
            said.append(f"{name}{side}" if side >= 0 else name)
            act(side, name)

        return called

    models = {side: Chain(order) for side, order in enumerate(orders, start=REFERENCE)}
    turns = Turns(models, {side: {name: name for name in blocks} for side in models})
    calls = {side: partial(model, torch.ones(3, 2)) for side, model in models.items()}
    with torch.no_grad():
        assert turns.work_for(calls)
        with ExitStack() as stack:
            for side, model in models.items():
                stack.enter_context(attach_taps(model, side, turns, {}, {name: [tap(side, name)] for name in "abc"}))
            stack.enter_context(turns.attach())
            found = turns.take(calls, NAMES)
        assert all(torch.equal(found[side], call()) for side, call in calls.items())
    assert turns.side is None
    return said


@pytest.mark.parametrize(
    ("orders", "said"),
    [
        (("abc", "abc", "abc"), "a a0 a1 b b0 b1 c c0 c1"),
        (("abc", "ac"), "a a0 b c c0"),
        (("abc", "cab"), "a b c c0 a0 b0"),
        (("aab", "ab"), "a a0 a b b0"),
        (("ab", "aab"), "a a0 b a0 b0"),
        (("abc", ""), "a b c"),
        (("", "ab"), "a0 b0"),
    ],
)
def test_a_variant_runs_a_block_once_the_reference_has(orders: tuple[str, ...], said: str) -> None:
    assert follow(*orders) == said.split()


def test_what_follows_the_last_block_runs_on_the_reference_first() -> None:
    assert follow("abc", "abc", blocks="ab") == ["a", "a0", "b", "c", "b0", "c0"]


@pytest.mark.parametrize(("side", "name"), [(REFERENCE, "b"), (0, "a"), (1, "c")])
def test_what_one_side_raises_ends_all(side: int, name: str) -> None:
    ends: list[Any] = []

    def act(at: int, of: str) -> None:
        ends.append(weakref.ref(greenlet.getcurrent()))
        if (at, of) == (side, name):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        follow("abc", "abc", "abc", act=act)
    gc.collect()
    assert all(end() is None or end().dead for end in ends)


def test_a_side_that_would_end_the_process_is_named() -> None:
    def act(side: int, name: str) -> None:
        if (side, name) == (1, "b"):
            raise SystemExit(0)

    with pytest.raises(ForeignCodeError, match="two: its forward pass raised SystemExit"):
        follow("abc", "abc", "abc", act=act)


class Setting:
    """Enters a context as a module of the variant is called and does not leave it, as some libraries do."""

    def __init__(self, context: Callable[[], Any], at: str) -> None:
        self.context, self.at = context, at

    def act(self, side: int, name: str) -> None:
        if (side, name) == (0, self.at):
            self.entered = self.context()
            self.entered.__enter__()

    def leave(self) -> None:
        self.entered.__exit__(None, None, None)


@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.enable_grad,
        torch.inference_mode,
        lambda: torch.device("cpu"),
    ],
)
@pytest.mark.parametrize("at", ["a", "c"])
def test_a_setting_that_one_side_changes_never_reaches_another(context: Callable[[], Any], at: str) -> None:
    def run() -> None:
        setting = Setting(context, at)
        try:
            follow("abcb", "abc", act=setting.act)
        finally:
            setting.leave()

    # Contexts that end in another order than they began leave their thread as it should not be.
    with ThreadPoolExecutor(1) as thread, pytest.raises(CannotTakeTurnsError):
        thread.submit(run).result()


def layout(*sites: tuple[str, ModuleKind]) -> Layout:
    outputs = tuple(OutputSite(name, kind, depth, 2) for depth, (name, kind) in enumerate(sites))
    return Layout(outputs, (), 2)


def test_turns_are_for_models_of_their_own_that_compare_nothing_between_blocks() -> None:
    one, other = Chain("abc"), Chain("abc")
    blocks = layout(("a", "block"), ("b", "block"))
    assert plan_turns({REFERENCE: one, 0: other}, blocks)
    assert plan_turns({REFERENCE: one, 0: other}, layout(("a", "linear"), ("b", "block"), ("c", "linear")))
    assert plan_turns({REFERENCE: one, 0: one}, blocks) is None
    assert plan_turns({REFERENCE: one, 0: None}, blocks) is None
    assert plan_turns({REFERENCE: one, 0: other}, layout(("a", "linear"), ("b", "linear"))) is None
    assert plan_turns({REFERENCE: one, 0: other}, layout(("a", "block"), ("b", "linear"), ("c", "block"))) is None
    other.b = one.b
    assert plan_turns({REFERENCE: one, 0: other}, blocks) is None


def one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "find_turns", lambda *_: None)


@pytest.mark.parametrize("make", [llama, gpt2, gemma2])
def test_turns_give_the_same_bytes_as_one_after_the_other(
    make: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = make()
    variants = [damaged(reference), damaged(reference, 0.1, seed=2)]
    report, turns = observe(tmp_path / "turns", reference, variants)
    with monkeypatch.context() as patched:
        one_after_the_other(patched)
        expected, apart = observe(tmp_path / "apart", reference, variants)
    assert [as_bytes(tables) for tables in turns] == [as_bytes(tables) for tables in apart]
    assert report == expected


def casting(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same in bfloat16, by a setting of the thread."""

    def cast(*arguments: Any, **named: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return forward(*arguments, **named)

    return cast


def replacing(forward: Callable[..., Any], shared: dict[str, float]) -> Callable[..., Any]:
    """The same with something replaced that others see, too."""

    def replaced(*arguments: Any, **named: Any) -> Any:
        shared["factor"] = 2.0
        try:
            return forward(*arguments, **named)
        finally:
            shared["factor"] = 1.0

    return replaced


def scaled(forward: Callable[..., Any], shared: dict[str, float]) -> Callable[..., Any]:
    return lambda *arguments, **named: forward(*arguments, **named) * shared["factor"]


@pytest.mark.parametrize("side", ["reference", "variant"])
@pytest.mark.parametrize("how", ["casts in its blocks", "casts", "replaces in its blocks", "replaces"])
def test_what_a_model_changes_while_it_runs_leaves_the_other_alone(
    side: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = llama()
    other, shared = damaged(plain), {"factor": 1.0}
    for layer in [*plain.model.layers, *other.model.layers]:
        layer.mlp.forward = scaled(layer.mlp.forward, shared)
    for module in other.model.layers if "blocks" in how else [other.model]:
        change = casting if "casts" in how else partial(replacing, shared=shared)
        module.forward = change(module.forward)
    pair = (other, plain) if side == "reference" else (plain, other)
    _, (turns,) = observe(tmp_path / "turns", pair[0], [pair[1]])
    with monkeypatch.context() as patched:
        one_after_the_other(patched)
        _, (apart,) = observe(tmp_path / "apart", pair[0], [pair[1]])
    assert as_bytes(turns) == as_bytes(apart)


def test_a_setting_that_changes_later_ends_the_turns_of_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = llama()
    variant, calls = damaged(reference), [0]
    forward = variant.model.forward

    def casts_later(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        return (casting(forward) if calls[0] > 8 else forward)(*arguments, **named)

    variant.model.forward = casts_later
    real, turns = driver._Pass._compute_states, list[bool]()

    def compute(self: Any, *arguments: Any) -> Any:
        found = real(self, *arguments)
        turns.append(self.in_turns)
        return found

    monkeypatch.setattr(driver._Pass, "_compute_states", compute)
    observe(tmp_path, reference, [variant])
    assert turns[0]
    assert not turns[-1]


def test_an_output_of_the_reference_is_kept_until_the_variants_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other all outputs are kept."""

    made: list[weakref.ref[_Kept]] = []

    class Counted(_Kept):
        def __init__(self, output: Tensor, waiting: set[int]) -> None:
            super().__init__(output, waiting)
            made.append(weakref.ref(self))

    def most_kept(folder: str) -> int:
        kept: list[int] = []

        def errors(reference: Tensor, variant: Tensor) -> tuple[Tensor, ...]:
            kept.append(sum((each := one()) is not None and each.output is not None for one in made))
            return row_errors(reference, variant)

        monkeypatch.setattr(kernels, "EAGER", replace(EAGER, errors=errors))
        observe(tmp_path / folder, reference, [damaged(reference)], kernel="eager", probes=[Layers()])
        return max(kept)

    monkeypatch.setattr(layers, "_Kept", Counted)
    reference = llama(num_hidden_layers=6)
    turns = most_kept("turns")
    one_after_the_other(monkeypatch)
    assert 0 < turns < 15
    assert most_kept("apart") > 40
