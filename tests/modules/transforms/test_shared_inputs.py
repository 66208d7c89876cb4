"""Which layers share a Hessian, and the order in which data passes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.modules.decoder_layers import Tap
from harness.modules.transforms.shared_inputs import SharedHessians, order_by_input


def hessian(*pieces: Tensor) -> Tensor:
    x_NI = torch.cat(pieces).double()
    return 2 * x_NI.T @ x_NI / len(x_NI)


def same(found: SharedHessians, name: str, *pieces: Tensor) -> None:
    of = found[name]
    assert of is not None
    assert of.count == sum(map(len, pieces))
    torch.testing.assert_close(of.matrix.double(), hessian(*pieces), rtol=1e-5, atol=1e-6)


def test_layers_with_one_input_share_one_hessian() -> None:
    first, second, other = torch.randn(5, 4), torch.randn(3, 4), torch.randn(5, 4)
    shared = SharedHessians(["q", "k", "o"])
    taps = shared.taps()
    for x in (first, second):
        taps["q"](x)
        taps["k"](x.view(-1, 4))
        taps["o"](other)
    assert shared["q"] is shared["k"]
    same(shared, "q", first, second)
    same(shared, "o", other, other)


def test_equal_values_in_another_tensor_are_another_input() -> None:
    x = torch.randn(5, 4)
    shared = SharedHessians(["q", "k"])
    shared.taps()["q"](x)
    shared.taps()["k"](x.clone())
    assert shared["q"] is not shared["k"]
    same(shared, "k", x)


def test_a_tensor_that_was_changed_is_another_input() -> None:
    x = torch.randn(5, 4)
    before = x.clone()
    shared = SharedHessians(["q", "k"])
    shared.taps()["q"](x)
    x += 1
    shared.taps()["k"](x)
    same(shared, "q", before)
    same(shared, "k", x)


def test_memory_that_is_used_again_is_no_shared_input() -> None:
    shared = SharedHessians(["q", "k"])
    taps = shared.taps()
    pieces = [torch.full((4, 8), float(value)) for value in (1, 2)]
    for name, piece in zip(("q", "k"), pieces, strict=True):
        # The tensor lives no longer than this statement, and the next one would get its memory.
        taps[name](piece.clone())
    same(shared, "q", pieces[0])
    same(shared, "k", pieces[1])


def test_layers_that_share_only_some_inputs_have_the_sums_of_their_own() -> None:
    both, alone = torch.randn(5, 4), torch.randn(3, 4)
    shared = SharedHessians(["gate", "up"])
    taps = shared.taps()
    taps["gate"](both)
    taps["up"](both)
    taps["gate"](alone)
    same(shared, "gate", both, alone)
    same(shared, "up", both)


def test_a_layer_that_is_called_twice_with_one_tensor_counts_it_twice() -> None:
    x = torch.randn(5, 4)
    shared = SharedHessians(["q"])
    tap = shared.taps()["q"]
    tap(x)
    tap(x)
    same(shared, "q", x, x)


def test_a_layer_that_saw_nothing_has_none() -> None:
    assert SharedHessians(["q"])["q"] is None


def test_matrices_of_one_stack_stand_together() -> None:
    rows = [torch.randn(2, 3), torch.randn(3, 3)]

    def observe(taps: Mapping[str, Tap]) -> None:
        for parameter in ("up_proj", "down_proj"):
            for expert, some in enumerate(rows):
                taps[f"experts.{parameter}[{expert}]"](some.clone())

    names = [f"experts.{parameter}[{expert}]" for expert in range(2) for parameter in ("up_proj", "down_proj")]
    assert order_by_input(names, observe) == [
        ["experts.up_proj[0]", "experts.up_proj[1]"],
        ["experts.down_proj[0]", "experts.down_proj[1]"],
    ]


def test_stages_follow_the_data_and_keep_experts_together() -> None:
    x, y, z = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3)
    rows = [x[:2].clone(), x[2:].clone()]

    def observe(taps: Mapping[str, Tap]) -> None:
        for name, value in (("k", x), ("q", x), ("o", y)):
            taps[name](value)
        for expert, some in enumerate(rows):
            taps[f"experts.{expert}.up"](some)
            taps[f"experts.{expert}.down"](some + 1)
        taps["mlp.0"](z)
        taps["mlp.1"](z + 1)

    names = [
        "q",
        "k",
        "never",
        "o",
        "experts.0.up",
        "experts.0.down",
        "experts.1.up",
        "experts.1.down",
        "mlp.0",
        "mlp.1",
    ]
    assert order_by_input(names, observe) == [
        ["k", "q"],
        ["o"],
        ["experts.0.up", "experts.1.up"],
        ["experts.0.down", "experts.1.down"],
        ["mlp.0"],
        ["mlp.1"],
        ["never"],
    ]
