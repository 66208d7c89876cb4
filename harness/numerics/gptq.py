"""GPTQ: rounding column by column, with what rounding breaks repaired in the columns that come later.

Wanted are values Q on a grid whose outputs on calibration inputs X [N, I] differ least from those of W [O, I]:

    ‖X Wᵀ − X Qᵀ‖²  ∝  tr (W − Q) H (W − Q)ᵀ        H = 2 XᵀX / N

With U upper triangular and H⁻¹ = UᵀU, column j is rounded, and its error pushed to the columns after it:

    q_j = round(w_j)      err = (w_j − q_j) / U_jj      w_k ← w_k − err · U_jk  for k > j

Source: Frantar et al. 2022 (arXiv 2210.17323), algorithm 1; dead columns, activation order and group indices as in
the programs that write such checkpoints (see ``prepare`` and ``solve``).

U is not made by inverting H. With R upper triangular and H = RRᵀ (a Cholesky decomposition from the last column to the
first), U = R⁻¹, and the diagonal blocks of U are the inverses of those of R. So one decomposition does where the
inverse takes three times the work and loses digits. What the columns before a block b have done to it is R's as well:

    w_b ← w_b + (W − Q)_before · R_before,b · U_bb

the solution of Chee et al. 2023 (arXiv 2307.13304, theorem 6: GPTQ and LDLQ are one method) written for blocks.

Legend: O outputs, I inputs (columns of a weight), N calibration positions, B columns of a block, G scales of an output.
The weight is worked on as [I, O], so that a column lies in one piece of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.numerics.formats import Format, Quantized, block_steps, checked
from harness.numerics.granularity import Blocks
from harness.numerics.grids import Steps
from harness.numerics.ranges import Limits

FindLimits = Callable[[Tensor, Format], Limits | None]
"""The limits of every block of a tensor; None: smallest and largest value."""

AT_ONCE = 16
"""Columns of a block that are repaired one by one; the others of the block follow in one matrix product."""
INDEX_BITS = 32
"""Bits that checkpoints spend on the group of each column where groups are not neighbours (``g_idx``, int32)."""


class Hessian:
    """H = 2 XᵀX / N of inputs that come piece by piece, in float32 (float64 stays)."""

    def __init__(self) -> None:
        self.count = 0
        """N: how many positions were seen."""
        self._sum: Tensor | None = None

    def add(self, x_NI: Tensor) -> None:
        x_NI = x_NI if x_NI.dtype == torch.float64 else x_NI.float()
        self.count += x_NI.shape[0]
        if self._sum is None:
            self._sum = x_NI.T @ x_NI
        else:
            self._sum.addmm_(x_NI.T, x_NI)

    def merge(self, other: Hessian) -> None:
        """Add what another one saw."""
        self.count += other.count
        if other._sum is not None:
            self._sum = other._sum.clone() if self._sum is None else self._sum.add_(other._sum)

    @property
    def matrix(self) -> Tensor:
        """[I, I]. Raises ValueError where nothing was seen, or what was seen is not finite."""
        if self._sum is None or not self.count:
            raise ValueError("no calibration input was seen")
        if not bool(torch.isfinite(self._sum).all()):
            raise ValueError("its calibration inputs hold NaN or infinity, or are too large to be squared")
        return self._sum * (2 / self.count)


@dataclass(frozen=True)
class Prepared:
    """A Hessian, ready for every weight that it belongs to.

    upper: R [I, I], in the order of the columns' treatment. order: that order [I], None for left to right. damping: as
    it was used, which is more than was asked for where the decomposition failed.
    """

    upper: Tensor
    order: Tensor | None
    damping: float


@dataclass(frozen=True)
class Solution:
    """A weight that GPTQ has put on its grid.

    quantized: values [O, I] and steps. group_of: the group of each column [I] where groups are not neighbours, else
    None; the steps of an output are those of group 0, 1, … either way. damping: as it was used.
    """

    quantized: Quantized
    group_of: Tensor | None
    damping: float

    @property
    def index_bits(self) -> int:
        """Bits that a checkpoint spends to say which column belongs to which group."""
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
    """``weight_OI`` on the grid of ``form``, with errors repaired under ``hessian_II``.

    ``gptq(weight, hessian, Format(integer(4), Blocks("group", 128))).quantized.values`` is what a benchmark calls; with
    ``static_groups=True`` it solves what llm-compressor's ``quantize_weight`` solves. See ``prepare`` and ``solve``,
    which it is made of, for the arguments and errors. Neither argument is changed.
    """
    prepared = prepare(hessian_II, damping=damping, act_order=act_order)
    return solve(weight_OI, prepared, form, block=block, static_groups=static_groups, limits=limits)


def prepare(hessian_II: Tensor, *, damping: float = 0.01, act_order: bool = False) -> Prepared:
    """Damp, order and decompose a Hessian; one result serves all weights that see the same input.

    damping: added to the diagonal, as a share of its mean; ten times as much (1e-4 at least) as long as the
    decomposition fails. act_order: columns by falling diagonal, equal ones from left to right. A dead column (zero on
    the diagonal: the input never was anything but 0) is given the mean of the diagonal: no error reaches or leaves it,
    and it is rounded to nearest. GPTQ's programs put zeros there, which nothing in the calibration data asks for.
    Raises ValueError for damping outside 0 to 1, and for a matrix that is not square, not finite, or cannot be
    decomposed with ten times its mean added.
    """
    if not 0 <= damping <= 1:
        raise ValueError(f"damping is {damping}, wanted 0 to 1")
    if hessian_II.ndim != 2 or hessian_II.shape[0] != hessian_II.shape[1]:
        raise ValueError(f"the Hessian has shape {tuple(hessian_II.shape)}, wanted a square matrix")
    hessian_II = checked(hessian_II)
    diagonal_I = hessian_II.diagonal()
    dead_I = diagonal_I == 0
    mean = float(diagonal_I.sum() / (~dead_I).sum()) if not bool(dead_I.all()) else 1.0
    diagonal_I = torch.where(dead_I, mean, diagonal_I)
    order_I = torch.argsort(diagonal_I, descending=True, stable=True) if act_order else None
    # From the last column to the first: rows and columns are turned round, and the factor is turned back.
    turned_I = torch.arange(len(diagonal_I), device=hessian_II.device) if order_I is None else order_I
    turned_I = turned_I.flip(0)
    work_II = hessian_II[turned_I[:, None], turned_I]
    while damping <= 10:
        work_II.diagonal().copy_(diagonal_I[turned_I] + damping * mean)
        lower_II, failed = torch.linalg.cholesky_ex(work_II)
        if not int(failed):
            return Prepared(lower_II.flip(0, 1), order_I, damping)
        damping = max(10 * damping, 1e-4)
    raise ValueError("the Hessian has no Cholesky decomposition with any damping; it is no sum of squares")


def solve(
    weight_OI: Tensor,
    prepared: Prepared,
    form: Format,
    *,
    block: int = 128,
    static_groups: bool = False,
    limits: FindLimits | None = None,
) -> Solution:
    """Put a weight on the grid of ``form``, column by column.

    block: columns whose errors reach the columns after the block in one matrix product; a matter of speed alone. Groups
    take their scale when their first column's turn comes, from weights that hold every repair so far; with
    ``static_groups``, and in blocks of any other kind, scales are those of ``weight_OI`` before any repair. Under
    activation order, groups that are not static are made of columns that follow each other in that order: the result
    says which (``group_of``), and a kernel has to look it up. Static groups stay neighbours whatever the order.

    Raises ValueError for a weight that has no place on a grid or does not fit the Hessian, and, unless
    ``static_groups``, for groups whose scales depend on the whole tensor (E4M3, double quantization): the last group's
    scale, which the first would need, is not known before the end.
    """
    weight_OI = checked(weight_OI)
    if weight_OI.ndim != 2 or weight_OI.shape[1] != len(prepared.upper):
        raise ValueError(f"weight {tuple(weight_OI.shape)} has no Hessian of {tuple(prepared.upper.shape)}")
    if block < 1:
        raise ValueError(f"block is {block}, wanted at least 1")
    order_I = prepared.order
    # Never the weight itself, which a transposed one would be without a copy.
    work_IO = weight_OI.T.clone(memory_format=torch.contiguous_format) if order_I is None else weight_OI.T[order_I]
    if form.blocks.kind == "group" and not static_groups:
        scales = _growing(form, len(work_IO), limits)
    else:
        scales = _fixed(weight_OI, form, order_I, limits)
    values_IO = _columns(work_IO, prepared.upper.to(work_IO.dtype), scales, block)
    group_I = None
    if order_I is not None:
        place_I = torch.argsort(order_I)
        values_IO = values_IO[place_I]
        if scales.size and len(scales.groups) > 1:
            group_I = place_I // scales.size
    return Solution(Quantized(values_IO.T.contiguous(), scales.steps), group_I, prepared.damping)


def output_errors(difference_OI: Tensor, hessian_II: Tensor) -> Tensor:
    """[O]: d H dᵀ for every row d, twice the mean square of what the row's output is off by on the calibration data."""
    errors_O = torch.zeros_like(difference_OI[:, 0])
    for start in range(0, len(hessian_II), 512):
        some = slice(start, start + 512)
        # H is symmetric: what lies left of the diagonal block counts twice, what lies right of it not at all.
        left_OB = difference_OI[:, :start] @ hessian_II[:start, some].to(difference_OI.dtype)
        own_OB = difference_OI[:, some] @ hessian_II[some, some].to(difference_OI.dtype)
        errors_O += ((2 * left_OB + own_OB) * difference_OI[:, some]).sum(-1)
    return errors_O


def keep_nearest(
    solution: Solution, weight_OI: Tensor, hessian_II: Tensor, nearest: Quantized
) -> tuple[Solution, Tensor]:
    """The solution with rows of ``nearest`` where they come closer, and which rows those are, bool [O].

    nearest: the weight rounded to nearest in the same format. GPTQ treats rows apart from each other, and the output
    error of a weight is the sum of those of its rows, so choosing by row is exact and never worse than choosing by
    weight. Only where groups are not neighbours all rows go together: one group index serves them all, and ``nearest``
    has another.
    """
    weight_OI, quantized = checked(weight_OI), solution.quantized
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
        steps = _map(lambda old, new: torch.where(rows_O[:, None], new, old), steps, nearest.steps)
    group_of = None if bool(rows_O.all()) else solution.group_of
    return replace(solution, quantized=Quantized(values, steps), group_of=group_of), rows_O


@dataclass
class _Scales:
    """The scales of the columns, in the order of treatment: ``groups[index[j]]`` is of column j, [O] or [1].

    size: of the groups where they take their scale when their turn comes; then ``groups`` grows.
    """

    form: Format
    limits: FindLimits | None
    index: list[int]
    groups: list[Steps]
    fixed: Steps | None = None
    size: int | None = None

    def open(self, now_BO: Tensor) -> None:
        """Scales for the next group, whose weights are these by now."""
        self.groups.append(_steps(now_BO.T.contiguous(), self.form, self.limits)[:, 0])

    def round(self, column: int, now_O: Tensor, out_O: Tensor) -> None:
        self.form.grid.round(now_O, self.groups[self.index[column]], out=out_O)

    @property
    def steps(self) -> Steps:
        if self.fixed is not None:
            return self.fixed
        return _map(lambda *groups: torch.stack(groups, -1), *self.groups)


def _growing(form: Format, columns: int, limits: FindLimits | None) -> _Scales:
    if not form.scales.separate:
        raise ValueError(
            f"scales of kind {form.scales.kind} depend on all groups of a weight, so none is known when GPTQ reaches "
            "the first; with static_groups they are those of the weight as it was"
        )
    size = form.blocks.size or columns
    return _Scales(form, limits, [column // size for column in range(columns)], [], size=size)


def _fixed(weight_OI: Tensor, form: Format, order_I: Tensor | None, limits: FindLimits | None) -> _Scales:
    steps = _steps(weight_OI, form, limits)
    columns_I = torch.arange(weight_OI.shape[1]) if order_I is None else order_I.cpu()
    if form.blocks.kind in ("group", "block"):
        index_I = columns_I // (form.blocks.size or 1)
    else:
        index_I = columns_I if form.blocks.axis else torch.zeros_like(columns_I)
    by_group = _map(lambda step: _by_group(step, form.blocks, len(weight_OI)), steps)
    groups = [by_group[group] for group in range(len(by_group.scale))]
    return _Scales(form, limits, index_I.tolist(), groups, fixed=steps)


def _by_group(step: Tensor, blocks: Blocks, outputs: int) -> Tensor:
    """[G, O], or [G, 1] where all outputs share: one row for every group of columns."""
    if blocks.kind == "group":
        return step.T.contiguous()
    if blocks.kind == "block":
        return step.repeat_interleave(blocks.size or 1, 0)[:outputs].T.contiguous()
    return step[:, None] if blocks.axis else step[None]


def _columns(work_IO: Tensor, upper_II: Tensor, scales: _Scales, block: int) -> Tensor:
    """The rounded weight [I, O]. ``work_IO`` becomes W − Q."""
    values_IO = torch.empty_like(work_IO)
    if scales.size:
        # A group has to be whole when it takes its scale.
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
        _block(now_BO, values_IO[some], inverse_BB, scales, start)
        work_IO[some] -= values_IO[some]
    return values_IO


def _block(now_BO: Tensor, values_BO: Tensor, inverse_BB: Tensor, scales: _Scales, offset: int) -> None:
    """Round the columns of a block one after the other. ``now_BO`` becomes their errors, divided by the diagonal."""
    diagonal = inverse_BB.diagonal().tolist()
    for start, stop in _pieces(len(now_BO), scales.size):
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


def _pieces(columns: int, size: int | None) -> Iterator[tuple[int, int]]:
    """Where to cut a block, so that no piece holds columns of two groups."""
    for group in range(0, columns, size or columns):
        end = min(group + (size or columns), columns)
        for start in range(group, end, AT_ONCE):
            yield start, min(start + AT_ONCE, end)


def _steps(x_OI: Tensor, form: Format, limits: FindLimits | None) -> Steps:
    return block_steps(form.blocks.split(x_OI), form, limits(x_OI, form) if limits else None)


def _map(change: Callable[..., Tensor], *steps: Steps) -> Steps:
    """``change`` of the scales of all ``steps``, of their zero points, and of what else they have."""
    zeros = [each.zero_point for each in steps if each.zero_point is not None]
    chosen = [each.chosen_under for each in steps if each.chosen_under is not None]
    scale = change(*(each.scale for each in steps))
    return Steps(scale, change(*zeros) if zeros else None, change(*chosen) if chosen else None)
