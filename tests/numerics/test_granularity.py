"""Blocks against loops over indices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.numerics.granularity import Blocks


@st.composite
def partitions(draw: st.DrawFn) -> tuple[Tensor, Blocks]:
    kind: Any = draw(st.sampled_from(["tensor", "channel", "group", "token", "block"]))
    ndim = 2 if kind == "block" else draw(st.integers(1, 4))
    shape = draw(st.lists(st.integers(1, 6), min_size=ndim, max_size=ndim))
    size = draw(st.integers(1, 8)) if kind in ("group", "block") else None
    axis = draw(st.integers(0, ndim - 1)) if kind == "channel" else 0
    x = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    return x, Blocks(kind, size, axis)


def of_block(index: tuple[int, ...], blocks: Blocks) -> tuple[int, ...]:
    """What the value at an index shares its scale with, by the definitions."""
    if blocks.kind == "tensor":
        return ()
    if blocks.kind == "channel":
        return (index[blocks.axis],)
    if blocks.kind == "token":
        return index[:-1]
    size = blocks.size or 0
    return tuple(i // size for i in index) if blocks.kind == "block" else (*index[:-1], index[-1] // size)


@given(partitions())
@settings(max_examples=150, deadline=None)
def test_values_share_a_block_by_definition(case: tuple[Tensor, Blocks]) -> None:
    x, blocks = case
    split = blocks.split(x)
    together: dict[tuple[int, ...], set[float]] = {}
    for index in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).reshape(-1, x.ndim).tolist():
        together.setdefault(of_block(tuple(index), blocks), set()).add(x[tuple(index)].item())
    found = [set(values) - {0.0} for values in split.reshape(-1, split.shape[-1]).tolist()]
    assert sorted(map(sorted, found)) == sorted(map(sorted, together.values()))
    assert blocks.count(tuple(x.shape)) == len(together) == split.shape[:-1].numel()
    # What was added is zeros alone.
    assert int((split == 0).sum()) == split.numel() - x.numel()


@given(partitions())
@settings(max_examples=150, deadline=None)
def test_joining_undoes_splitting(case: tuple[Tensor, Blocks]) -> None:
    x, blocks = case
    for y in (x, x.transpose(0, -1).contiguous().transpose(0, -1)):
        assert torch.equal(blocks.join(blocks.split(y), tuple(x.shape)), x)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "group"},
        {"kind": "block"},
        {"kind": "tensor", "size": 4},
        {"kind": "group", "size": 0},
        {"kind": "group", "size": 4, "axis": 1},
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"size|axis"):
        Blocks(**fields)


@pytest.mark.parametrize(
    ("blocks", "shape"),
    [
        (Blocks("block", 2), (4,)),
        (Blocks("block", 2), (4, 4, 4)),
        (Blocks("channel", axis=2), (4, 4)),
        (Blocks("group", 2), ()),
        (Blocks(), (0, 3)),
    ],
)
def test_shapes_that_cannot_be_taken_apart_are_refused(blocks: Blocks, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        blocks.split(torch.ones(shape))
