"""GPTQ: rounds a weight column by column and compensates each column's rounding error in the columns after it.

The goal is values Q on a grid whose outputs on calibration inputs X [N, I] differ least from those of W [O, I]:

    ‖X Wᵀ − X Qᵀ‖²  ∝  tr (W − Q) H (W − Q)ᵀ        H = 2 XᵀX / N

With U upper triangular and H⁻¹ = UᵀU, column j is rounded and its error is propagated to the columns after it:

    q_j = round(w_j)      err = (w_j − q_j) / U_jj      w_k ← w_k − err · U_jk  for k > j

Source: Frantar et al. 2022 (arXiv 2210.17323), algorithm 1; dead columns, activation order and group indices as in
the programs that write such checkpoints (see ``prepare`` and ``solve``).

U is not computed by inverting H. With R upper triangular and H = RRᵀ (a Cholesky decomposition from the last column to
the first), U = R⁻¹, and the diagonal blocks of U are the inverses of those of R. One decomposition suffices, where the
inverse costs three times the work and loses digits. The effect of all earlier columns on a block b follows from R too:

    w_b ← w_b + (W − Q)_before · R_before,b · U_bb

the solution of Chee et al. 2023 (arXiv 2307.13304, theorem 6: GPTQ and LDLQ are one method) written for blocks.

Legend: O outputs, I inputs (columns of a weight), N calibration positions, B columns of a block, G scales per output.
The weight is processed as [I, O], so that each column is contiguous in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.numerics.formats import Format, Quantized, block_steps, check_tensor
from harness.numerics.granularity import Blocks
from harness.numerics.grids import Steps
from harness.numerics.ranges import Limits

FindLimits = Callable[[Tensor, Format], Limits | None]
"""Returns the limits of every block of a tensor; None stands for minimum and maximum."""

SEQUENTIAL_COLUMNS = 16
"""Columns of a block that are updated one at a time; the rest of the block is updated in one matrix product."""
INDEX_BITS = 32
"""Bits per column that checkpoints store for its group index where groups are not contiguous (``g_idx``, int32)."""


class Hessian:
    """H = 2 XᵀX / N, accumulated over batches of inputs in float32 (float64 inputs stay float64)."""

    def __init__(self) -> None:
        self.count = 0
        """N: number of positions accumulated."""
        self._sum: Tensor | None = None

    def add(self, x_NI: Tensor) -> None:
        x_NI = x_NI if x_NI.dtype == torch.float64 else x_NI.float()
        self.count += x_NI.shape[0]
        if self._sum is None:
            self._sum = x_NI.T @ x_NI
        else:
            self._sum.addmm_(x_NI.T, x_NI)

    def merge(self, other: Hessian) -> None:
        """Add the inputs accumulated by another Hessian."""
        self.count += other.count
        if other._sum is not None:
            self._sum = other._sum.clone() if self._sum is None else self._sum.add_(other._sum)

    @property
    def matrix(self) -> Tensor:
        """[I, I]. Raises ValueError if no input was accumulated or the sum is not finite."""
        if self._sum is None or not self.count:
            raise ValueError("no calibration input was seen")
        if not bool(torch.isfinite(self._sum).all()):
            raise ValueError("its calibration inputs contain NaN or infinity, or overflow when squared")
        return self._sum * (2 / self.count)


@dataclass(frozen=True)
class PreparedHessian:
    """A decomposed Hessian, shared by all weights that read the same input.

    upper: R [I, I], in the order in which columns are quantized. order: that order [I], None for left to right.
    damping: the value actually used, larger than the requested one if the decomposition failed with that.
    """

    upper: Tensor
    order: Tensor | None
    damping: float


@dataclass(frozen=True)
class Solution:
    """A weight quantized by GPTQ.

    quantized: values [O, I] and steps. group_of: group index of each column [I] if groups are not contiguous, else
    None; the steps of an output are those of group 0, 1, … either way. damping: the value actually used.
    """

    quantized: Quantized
    group_of: Tensor | None
    damping: float

    @property
    def index_bits(self) -> int:
        """Bits that a checkpoint stores for the group index of all columns."""
        return 0 if self.group_of is None else INDEX_BITS * len(self.group_of)


def gptq(
    weight_OI: Tensor,
    hessian_II: Tensor,
    form: Format,
    *,
    damping: float = 0.01,
    block: int = 128,
    act_order: bool = False,
    static_groups: bool = False,
    limits: FindLimits | None = None,
) -> Solution:
    """Quantize ``weight_OI`` on the grid of ``form``, compensating errors under ``hessian_II``.

    ``gptq(weight, hessian, Format(integer(4), Blocks("group", 128))).quantized.values`` is what a benchmark calls; with
    ``static_groups=True`` it solves what llm-compressor's ``quantize_weight`` solves. It calls ``prepare`` and
    ``solve``; see these for the arguments and errors. Neither argument is modified.
    """
    prepared = prepare(hessian_II, damping=damping, act_order=act_order)
    return solve(weight_OI, prepared, form, block=block, static_groups=static_groups, limits=limits)


def prepare(hessian_II: Tensor, *, damping: float = 0.01, act_order: bool = False) -> PreparedHessian:
    """Damp, order and decompose a Hessian; the result serves all weights that read the same input.

    damping: added to the diagonal, as a fraction of its mean; multiplied by ten (to at least 1e-4) as long as the
    decomposition fails. act_order: columns by descending diagonal, ties from left to right. A dead column (zero on
    the diagonal: its input was always 0) gets the mean of the diagonal: no error enters or leaves it, and it is
    rounded to nearest. GPTQ's programs put zeros there, which nothing in the calibration data requires.
    Raises ValueError for damping outside 0 to 1, and for a matrix that is not square, not finite, or cannot be
    decomposed even with ten times its mean added.
    """
    if not 0 <= damping <= 1:
        raise ValueError(f"damping is {damping}, expected 0 to 1")
    if hessian_II.ndim != 2 or hessian_II.shape[0] != hessian_II.shape[1]:
        raise ValueError(f"the Hessian has shape {tuple(hessian_II.shape)}, expected a square matrix")
    hessian_II = check_tensor(hessian_II)
    diagonal_I = hessian_II.diagonal()
    dead_I = diagonal_I == 0
    mean = float(diagonal_I.sum() / (~dead_I).sum()) if not bool(dead_I.all()) else 1.0
    diagonal_I = torch.where(dead_I, mean, diagonal_I)
    order_I = torch.argsort(diagonal_I, descending=True, stable=True) if act_order else None
    # Decomposing from the last column to the first: reverse rows and columns, then reverse the factor.
    turned_I = torch.arange(len(diagonal_I), device=hessian_II.device) if order_I is None else order_I
    turned_I = turned_I.flip(0)
    work_II = hessian_II[turned_I[:, None], turned_I]
    while damping <= 10:
        work_II.diagonal().copy_(diagonal_I[turned_I] + damping * mean)
        lower_II, failed = torch.linalg.cholesky_ex(work_II)
        if not int(failed):
            return PreparedHessian(lower_II.flip(0, 1), order_I, damping)
        damping = max(10 * damping, 1e-4)
    raise ValueError("the Hessian has no Cholesky decomposition at any damping; it is not positive semi-definite")


def solve(
    weight_OI: Tensor,
    prepared: PreparedHessian,
    form: Format,
    *,
    block: int = 128,
    static_groups: bool = False,
    limits: FindLimits | None = None,
) -> Solution:
    """Quantize a weight on the grid of ``form``, column by column.

    block: columns whose errors are propagated to the columns after the block in one matrix product; affects speed only.
    Each group takes its scale when its first column is reached, from weights that include all updates so far; with
    ``static_groups``, and for every other granularity, scales are computed from ``weight_OI`` before any update. Under
    activation order, groups that are not static consist of consecutive columns in that order: ``group_of`` in the
    result says which, and a kernel has to look it up. Static groups stay contiguous whatever the order.

    Raises ValueError for a weight that cannot be quantized or does not match the Hessian, and, unless
    ``static_groups``, for groups whose scales depend on the whole tensor (E4M3, double quantization): the first group
    would need the scale of the last one, which is not known before the end.
    """
    weight_OI = check_tensor(weight_OI)
    if weight_OI.ndim != 2 or weight_OI.shape[1] != len(prepared.upper):
        raise ValueError(f"weight {tuple(weight_OI.shape)} does not match a Hessian of {tuple(prepared.upper.shape)}")
    if block < 1:
        raise ValueError(f"block is {block}, expected at least 1")
    order_I = prepared.order
    # A transposed view would share memory with the caller's weight, which must stay unchanged.
    work_IO = weight_OI.T.clone(memory_format=torch.contiguous_format) if order_I is None else weight_OI.T[order_I]
    if form.blocks.kind == "group" and not static_groups:
        scales = _scales_growing(form, len(work_IO), limits)
    else:
        scales = _scales_fixed(weight_OI, form, order_I, limits)
    values_IO = _round_columns(work_IO, prepared.upper.to(work_IO.dtype), scales, block)
    group_I = None
    if order_I is not None:
        place_I = torch.argsort(order_I)
        values_IO = values_IO[place_I]
        if scales.size and len(scales.groups) > 1:
            group_I = place_I // scales.size
    return Solution(Quantized(values_IO.T.contiguous(), scales.steps), group_I, prepared.damping)


def output_errors(difference_OI: Tensor, hessian_II: Tensor) -> Tensor:
    """[O]: d H dᵀ for every row d, twice the mean squared error of that output on the calibration data."""
    errors_O = torch.zeros_like(difference_OI[:, 0])
    for start in range(0, len(hessian_II), 512):
        some = slice(start, start + 512)
        # H is symmetric: the part left of the diagonal block counts twice, the part right of it is skipped.
        left_OB = difference_OI[:, :start] @ hessian_II[:start, some].to(difference_OI.dtype)
        own_OB = difference_OI[:, some] @ hessian_II[some, some].to(difference_OI.dtype)
        errors_O += ((2 * left_OB + own_OB) * difference_OI[:, some]).sum(-1)
    return errors_O


def keep_nearest(
    solution: Solution, weight_OI: Tensor, hessian_II: Tensor, nearest: Quantized
) -> tuple[Solution, Tensor]:
    """Replace rows of the solution by rows of ``nearest`` where these have less error; returns also which, bool [O].

    nearest: the weight rounded to nearest in the same format. GPTQ treats rows independently, and the output error of
    a weight is the sum over its rows, so choosing by row is exact and never worse than choosing by weight. Only where
    groups are not contiguous is the choice made for all rows together: they share one group index, and ``nearest``
    has another.
    """
    weight_OI, quantized = check_tensor(weight_OI), solution.quantized
    better_O = output_errors(weight_OI - quantized.values, hessian_II)
    better_O = better_O - output_errors(weight_OI - nearest.values, hessian_II)
    rows_O = better_O > 0
    if solution.group_of is not None:
        rows_O = (better_O.sum() > 0).expand_as(rows_O)
    if not bool(rows_O.any()):
        return solution, rows_O
    values = torch.where(rows_O[:, None], nearest.values, quantized.values)
    steps = quantized.steps
    if steps.scale.shape[0] == len(rows_O) and steps.scale.ndim == 2:
        steps = _map_steps(lambda old, new: torch.where(rows_O[:, None], new, old), steps, nearest.steps)
    group_of = None if bool(rows_O.all()) else solution.group_of
    return replace(solution, quantized=Quantized(values, steps), group_of=group_of), rows_O


@dataclass
class _Scales:
    """Scales of the columns in the order of quantization: those of column j are ``groups[index[j]]``, [O] or [1].

    size: group size if groups take their scale when they are reached; ``groups`` then grows. Otherwise None.
    """

    form: Format
    limits: FindLimits | None
    index: list[int]
    groups: list[Steps]
    fixed: Steps | None = None
    size: int | None = None

    def open(self, now_BO: Tensor) -> None:
        """Compute the scales of the next group from its current weights."""
        self.groups.append(_make_steps(now_BO.T.contiguous(), self.form, self.limits)[:, 0])

    def round(self, column: int, now_O: Tensor, out_O: Tensor) -> None:
        self.form.grid.round(now_O, self.groups[self.index[column]], out=out_O)

    @property
    def steps(self) -> Steps:
        if self.fixed is not None:
            return self.fixed
        return _map_steps(lambda *groups: torch.stack(groups, -1), *self.groups)


def _scales_growing(form: Format, columns: int, limits: FindLimits | None) -> _Scales:
    if not form.scales.separate:
        raise ValueError(
            f"scales of kind {form.scales.kind} depend on all groups of a weight, so none is known when GPTQ reaches "
            "the first; set static_groups to compute them from the original weight"
        )
    size = form.blocks.size or columns
    return _Scales(form, limits, [column // size for column in range(columns)], [], size=size)


def _scales_fixed(weight_OI: Tensor, form: Format, order_I: Tensor | None, limits: FindLimits | None) -> _Scales:
    steps = _make_steps(weight_OI, form, limits)
    columns_I = torch.arange(weight_OI.shape[1]) if order_I is None else order_I.cpu()
    if form.blocks.kind in ("group", "block"):
        index_I = columns_I // (form.blocks.size or 1)
    else:
        index_I = columns_I if form.blocks.axis else torch.zeros_like(columns_I)
    by_group = _map_steps(lambda step: _stack_groups(step, form.blocks, len(weight_OI)), steps)
    groups = [by_group[group] for group in range(len(by_group.scale))]
    return _Scales(form, limits, index_I.tolist(), groups, fixed=steps)


def _stack_groups(step: Tensor, blocks: Blocks, outputs: int) -> Tensor:
    """[G, O], or [G, 1] if all outputs share a scale: one row per group of columns."""
    if blocks.kind == "group":
        return step.T.contiguous()
    if blocks.kind == "block":
        return step.repeat_interleave(blocks.size or 1, 0)[:outputs].T.contiguous()
    return step[:, None] if blocks.axis else step[None]


def _round_columns(work_IO: Tensor, upper_II: Tensor, scales: _Scales, block: int) -> Tensor:
    """Return the rounded weight [I, O]; overwrites ``work_IO`` with W − Q."""
    values_IO = torch.empty_like(work_IO)
    if scales.size:
        # A group must be complete when its scale is computed.
        block = max(block // scales.size, 1) * scales.size
    for start in range(0, len(work_IO), block):
        some = slice(start, min(start + block, len(work_IO)))
        upper_BB = upper_II[some, some]
        inverse_BB = torch.linalg.solve_triangular(upper_BB, torch.eye(len(upper_BB)).to(upper_BB), upper=True)
        now_BO = work_IO[some]
        if start:
            now_BO = torch.addmm(now_BO, inverse_BB.T, upper_II[:start, some].T @ work_IO[:start])
        else:
            now_BO = now_BO.clone()
        _round_block(now_BO, values_IO[some], inverse_BB, scales, start)
        work_IO[some] -= values_IO[some]
    return values_IO


def _round_block(now_BO: Tensor, values_BO: Tensor, inverse_BB: Tensor, scales: _Scales, offset: int) -> None:
    """Round the columns of a block in order; overwrites ``now_BO`` with their errors divided by the diagonal."""
    diagonal = inverse_BB.diagonal().tolist()
    for start, stop in _split_block(len(now_BO), scales.size):
        if scales.size and start % scales.size == 0:
            scales.open(now_BO[start : start + scales.size])
        for column in range(start, stop):
            error_O = now_BO[column]
            scales.round(offset + column, error_O, values_BO[column])
            error_O.sub_(values_BO[column]).div_(diagonal[column])
            if column + 1 < stop:
                now_BO[column + 1 : stop].addr_(inverse_BB[column, column + 1 : stop], error_O, alpha=-1)
        if stop < len(now_BO):
            now_BO[stop:].addmm_(inverse_BB[start:stop, stop:].T, now_BO[start:stop], alpha=-1)


def _split_block(columns: int, size: int | None) -> Iterator[tuple[int, int]]:
    """Bounds of the pieces of a block, none of which spans two groups."""
    for group in range(0, columns, size or columns):
        end = min(group + (size or columns), columns)
        for start in range(group, end, SEQUENTIAL_COLUMNS):
            yield start, min(start + SEQUENTIAL_COLUMNS, end)


def _make_steps(x_OI: Tensor, form: Format, limits: FindLimits | None) -> Steps:
    return block_steps(form.blocks.split(x_OI), form, limits(x_OI, form) if limits else None)


def _map_steps(change: Callable[..., Tensor], *steps: Steps) -> Steps:
    """Apply ``change`` to the scales, the zero points and the other tensors of all ``steps``."""
    zeros = [each.zero_point for each in steps if each.zero_point is not None]
    chosen = [each.chosen_under for each in steps if each.chosen_under is not None]
    scale = change(*(each.scale for each in steps))
    return Steps(scale, change(*zeros) if zeros else None, change(*chosen) if chosen else None)
