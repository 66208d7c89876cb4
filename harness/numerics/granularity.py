"""What shares one scale: a tensor, a channel, a group, a token, or a square block."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor
from torch.nn import functional

BlockKind = Literal["tensor", "channel", "group", "token", "block"]


@dataclass(frozen=True)
class Blocks:
    """A partition of a tensor into blocks of values that share a scale.

    tensor   everything
    channel  every index of ``axis`` (0: the output channels of a weight [O, I]; any axis of any tensor)
    group    ``size`` neighbours along the last axis, which is the input dimension of a weight; never across
             rows; the last group of a row may be shorter
    token    every vector along the last axis of an activation [..., D]
    block    squares of ``size`` × ``size`` of a matrix; the last of a row or column may be smaller
    """

    kind: BlockKind = "tensor"
    size: int | None = None
    axis: int = 0

    def __post_init__(self) -> None:
        if (self.kind in ("group", "block")) != (self.size is not None):
            raise ValueError(f"size belongs to blocks of kind group and block, and only to them, not {self.kind}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size is {self.size}, expected at least 1")
        if self.axis and self.kind != "channel":
            raise ValueError("axis is a choice of channels")

    def split(self, x: Tensor) -> Tensor:
        """[..., n]: the values of a block along the last axis; short blocks are filled with zeros.

        Raises ValueError for a tensor that cannot be partitioned so.
        """
        self._check(x.shape)
        if self.kind == "tensor":
            return x.reshape(1, -1)
        if self.kind == "channel":
            return x.movedim(self.axis, 0).reshape(x.shape[self.axis], -1)
        if self.kind == "token":
            return x
        size = self._size
        if self.kind == "group":
            missing = -x.shape[-1] % size
            padded = functional.pad(x, (0, missing)) if missing else x
            return padded.reshape(*x.shape[:-1], -1, size)
        right, below = -x.shape[1] % size, -x.shape[0] % size
        padded = functional.pad(x, (0, right, 0, below)) if right or below else x
        rows, columns = padded.shape[0] // size, padded.shape[1] // size
        return padded.reshape(rows, size, columns, size).transpose(1, 2).reshape(rows, columns, size * size)

    def join(self, split: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor of ``shape`` that ``split`` was made of."""
        if self.kind in ("tensor", "token"):
            return split.reshape(shape)
        if self.kind == "channel":
            rest = shape[: self.axis] + shape[self.axis + 1 :]
            return split.reshape(shape[self.axis], *rest).movedim(0, self.axis)
        if self.kind == "group":
            return split.reshape(*shape[:-1], -1)[..., : shape[-1]]
        rows, columns = split.shape[:2]
        whole = split.reshape(rows, columns, self._size, self._size).transpose(1, 2)
        return whole.reshape(rows * self._size, columns * self._size)[: shape[0], : shape[1]]

    def count(self, shape: tuple[int, ...]) -> int:
        """How many scales a tensor of ``shape`` has."""
        self._check(shape)
        if self.kind == "tensor":
            return 1
        if self.kind == "channel":
            return shape[self.axis]
        if self.kind == "token":
            return prod(shape[:-1])
        if self.kind == "group":
            return prod(shape[:-1]) * -(-shape[-1] // self._size)
        return -(-shape[0] // self._size) * -(-shape[1] // self._size)

    @property
    def by_rows(self) -> bool:
        """Whether rows of a matrix can be treated one after the other."""
        return self.kind in ("group", "token") or (self.kind == "channel" and self.axis == 0)

    @property
    def _size(self) -> int:
        assert self.size is not None  # noqa: S101 - __post_init__ saw to it
        return self.size

    def _check(self, shape: tuple[int, ...]) -> None:
        wanted = {"block": 2, "group": 1, "token": 1, "channel": self.axis + 1}.get(self.kind, 0)
        if len(shape) < wanted or (self.kind == "block" and len(shape) != 2) or not prod(shape):
            raise ValueError(f"a tensor of shape {tuple(shape)} cannot be taken apart by {self.kind}")
