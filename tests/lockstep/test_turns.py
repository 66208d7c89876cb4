"""Models that take turns: the order of taps, the same bytes as one after the other, and what ends the turns."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
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
from harness.lockstep.recording import REFERENCE
from harness.lockstep.turns import CannotTakeTurnsError, Turns, share_modules
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


def follow(*orders: str, act: Callable[[int, str], None] = lambda side, name: None) -> list[str]:
    """The taps on outputs of several chains, the reference's first, in the order in which they are called."""
    turns, said = Turns(), list[str]()

    def tap(side: int, name: str) -> Callable[[Tensor], None]:
        def called(_: Tensor) -> None:
            said.append(f"{name}{side}" if side >= 0 else name)
            act(side, name)

        return called

    models = {side: Chain(order) for side, order in enumerate(orders, start=REFERENCE)}
    calls = {side: (lambda model=model: model(torch.ones(3, 2))) for side, model in models.items()}
    with torch.no_grad():
        attached = [
            attach_taps(model, side, turns, {}, {name: [tap(side, name)] for name in "abc"})
            for side, model in models.items()
        ]
        for each in attached:
            each.__enter__()
        found = turns.take(calls, NAMES)
        for each in attached:
            each.__exit__(None, None, None)
        assert all(torch.equal(found[side], model(torch.ones(3, 2))) for side, model in models.items())
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
def test_a_variant_calls_a_tap_once_the_reference_has(orders: tuple[str, ...], said: str) -> None:
    assert follow(*orders) == said.split()


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
    setting = Setting(context, at)
    try:
        with pytest.raises(CannotTakeTurnsError):
            follow("abcb", "abc", act=setting.act)
    finally:
        setting.leave()


def test_models_that_share_a_module_are_known() -> None:
    one, other = Chain("a"), Chain("a")
    assert not share_modules([one, other])
    assert share_modules([one, one])
    other.b = one.b
    assert share_modules([one, other])


def one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "share_modules", lambda _: True)


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


@pytest.mark.parametrize("side", ["reference", "variant"])
def test_a_model_that_casts_across_its_modules_leaves_the_other_alone(
    side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = llama()
    other = damaged(plain)
    for layer in other.model.layers:
        layer.mlp.forward = casting(layer.mlp.forward)
    pair = (other, plain) if side == "reference" else (plain, other)
    _, (turns,) = observe(tmp_path / "turns", pair[0], [pair[1]])
    with monkeypatch.context() as patched:
        one_after_the_other(patched)
        _, (apart,) = observe(tmp_path / "apart", pair[0], [pair[1]])
    assert as_bytes(turns) == as_bytes(apart)


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
    assert turns == 0
    assert most_kept("apart") > 20
