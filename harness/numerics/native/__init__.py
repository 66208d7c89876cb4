"""Blocks of values against grids, as native code (``blocks.cpp``), built once a machine.

Each block is read from memory once. The check of an INT4 weight takes about a tenth of the processor time of plain
torch code.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from harness.numerics.grids import Codebook, Float8, Grid, Integer, list_edges
from harness.system.native_code import load_library, pointer, share

SOURCE = Path(__file__).with_name("blocks.cpp")
TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The types that the code reads."""
MOST_VALUES = 32
"""Values of a codebook that are compared one by one."""


@cache
def build() -> BlockSweeps:
    """The code, compiled for this machine unless an earlier process did. Raises BuildError."""
    return BlockSweeps(load_library(SOURCE))


@dataclass(frozen=True)
class BlockSweeps:
    """Both functions, for blocks [M, n]."""

    library: ctypes.CDLL

    def reads(self, blocks: Tensor, grid: Grid) -> bool:
        """Whether ``lie_on_grid`` takes these blocks and this grid."""
        known = isinstance(grid, Integer | Float8) or (isinstance(grid, Codebook) and len(grid.values) <= MOST_VALUES)
        return known and blocks.is_cpu and blocks.dtype in TYPES and blocks.numel() > 0

    def lie_on_grid(
        self, blocks: Tensor, grid: Grid, sizes: Sequence[float], affine: bool, relative: float, absolute: float
    ) -> Tensor:
        """Whether each block lies on a symmetric grid under the scale reach / size, for one of the sizes; bool [M].

        reach: its largest magnitude or, if affine, the distance of its ends from each other. A value may be off by
        ``relative`` of itself and ``absolute``. A block with NaN does not lie on any grid.
        """
        x, (kind, numbers, count) = blocks.contiguous(), _describe(grid)
        tried = torch.tensor(sizes, dtype=torch.float32)
        good = torch.empty(len(x), dtype=torch.bool)
        check = self.library[f"lie_on_grid_{str(x.dtype).removeprefix('torch.')}"]

        def sweep(some: slice) -> None:
            whole = map(ctypes.c_int64, (len(x[some]), x.shape[1], kind))
            check(
                pointer(x[some]),
                *whole,
                pointer(numbers),
                ctypes.c_int64(count),
                ctypes.c_int64(affine),
                pointer(tried),
                ctypes.c_int64(len(tried)),
                ctypes.c_float(relative),
                ctypes.c_float(absolute),
                pointer(good[some]),
            )

        share(len(x), sweep)
        return good

    def counts(self, blocks: Tensor) -> bool:
        """Whether ``count_distinct`` takes these blocks."""
        return blocks.is_cpu and blocks.element_size() == 2 and 0 < len(blocks) < 2**32 and blocks.stride(-1) == 1

    def count_distinct(self, blocks: Tensor) -> int:
        """The largest number of distinct values in any block of 16-bit floats; 0 and −0 are one value."""
        seen = torch.zeros(2**16, dtype=torch.int32)
        function = self.library["count_distinct"]
        function.restype = ctypes.c_int64
        sizes = map(ctypes.c_int64, (*blocks.shape, blocks.stride(0)))
        return int(function(pointer(blocks), *sizes, pointer(seen)))


def _describe(grid: Grid) -> tuple[int, Tensor, int]:
    """What the code calls the kind of a grid, and its numbers with their count."""
    if isinstance(grid, Integer):
        return 0, torch.tensor([float(end) for end in grid.code_range]), 2
    if isinstance(grid, Float8):
        factor = 1.5 * 2.0 ** (23 - grid.fraction_bits)
        return 1, torch.tensor([grid.largest, torch.finfo(grid.dtype).smallest_normal, factor]), 3
    if isinstance(grid, Codebook):
        return 2, torch.cat([torch.tensor(grid.values), list_edges(grid)]), len(grid.values)
    raise TypeError(f"{type(grid).__name__} is no grid that the code knows")
