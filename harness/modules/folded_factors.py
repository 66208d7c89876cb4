"""Row and column factors of weights, and whether other modules undo them.

SmoothQuant and AWQ move scales between modules: the columns of a weight are multiplied, and the norm before it, or the
rows of the linear layer before it, are divided. Factors that nothing undoes are damage, such as the scales of rows in
the wrong order.

Legend: O output channels, I inputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.modules.layer_pairs import LayerPairs, block_numbers, list_parents

ALIKE = 0.5
"""Largest median distance of two vectors of log-factors, relative to the median size of one, at which one undoes the
other. Factors are fitted to rounded weights, so that they are never exactly the same; those of unrelated vectors differ
by more than their size."""
DEAD = 1e-12
"""Factors up to this size belong to rows or columns that are zero, and say nothing."""


@dataclass(frozen=True)
class Factors:
    """What the weight of a variant must be multiplied with to fit the reference: rows [O] and columns [I]."""

    rows: Tensor
    columns: Tensor

    def apply(self, after_OI: Tensor) -> Tensor:
        """The weight with its factors undone."""
        return after_OI * self.rows[:, None] * self.columns


def fit_factors(before_OI: Tensor, after_OI: Tensor) -> Factors:
    """The row and column factors that leave the smallest squared error, by three alternating steps."""
    products_OI, squares_OI = before_OI * after_OI, after_OI.square()
    columns_I = _fit(products_OI.T, squares_OI.T, torch.ones_like(after_OI[:, 0]))
    rows_O = _fit(products_OI, squares_OI, columns_I)
    return Factors(rows_O, _fit(products_OI.T, squares_OI.T, rows_O))


def _fit(products: Tensor, squares: Tensor, others: Tensor) -> Tensor:
    """The best factor for each row, given those of the columns."""
    return (products @ others) / (squares @ others.square()).clamp(min=1e-30)


def keep_undone(
    found: Mapping[str, Factors], reference: nn.Module, variant: nn.Module, pairs: LayerPairs
) -> dict[str, Factors]:
    """The factors as the norms and weights have them that undo them, ones where none does; without the modules of which
    nothing is undone. found: by name in the reference."""
    blocks, head = block_numbers(reference), _head_size(variant)
    norms, rows, columns = (defaultdict[str, list[Tensor]](list) for _ in range(3))
    for name, ratio in _norm_ratios(reference, variant, pairs):
        norms[_block_of(name, blocks)].append(ratio)
    logs = {name: _logs(each) for name, each in found.items()}
    for name, (own_rows, own_columns) in logs.items():
        rows[_block_of(name, blocks)].append(-own_rows)
        columns[_block_of(name, blocks)].append(-own_columns)
    kept = {}
    for name, (own_rows, own_columns) in logs.items():
        block = _block_of(name, blocks)
        by_rows = _match(own_rows, columns[block], head)
        by_columns = _match(own_columns, [*norms[block], *rows[block]], head)
        if by_rows is not None or by_columns is not None:
            ones = (torch.ones_like(own_rows), torch.ones_like(own_columns))
            kept[name] = Factors(ones[0] if by_rows is None else by_rows, ones[1] if by_columns is None else by_columns)
    return kept


def _norm_ratios(reference: nn.Module, variant: nn.Module, pairs: LayerPairs) -> Iterator[tuple[str, Tensor]]:
    """Name and log-ratios of every vector that differs, as it stands and plus one (norms may scale by 1 + weight)."""
    after = dict(variant.named_parameters())
    for name, before in reference.named_parameters():
        other = after.get(pairs.find_in_variant(name) or "")
        if before.dim() == 1 and other is not None and other.shape == before.shape and other.is_floating_point():
            left, right = before.detach().float(), other.detach().float().to(before.device)
            if not torch.equal(left, right):
                yield from ((name, _log(high / low)) for high, low in ((right, left), (1 + right, 1 + left)))


def _block_of(name: str, blocks: Mapping[str, int]) -> str:
    """The decoder layer of a module or parameter: factors are folded between modules of one layer."""
    return next((outer for outer in list_parents(name) if outer in blocks), "")


def _head_size(model: nn.Module) -> int:
    """Channels of an attention head, 0 where the configuration does not say."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(text, "num_attention_heads", None)
    size = getattr(text, "head_dim", None) or (getattr(text, "hidden_size", 0) // heads if heads else 0)
    return int(size or 0)


def _logs(found: Factors) -> tuple[Tensor, Tensor]:
    """Logarithms of rows and columns. Their split is arbitrary up to a constant, which the more variable one gets."""
    rows, columns = _log(found.rows), _log(found.columns)
    if _spread(rows) > _spread(columns):
        return rows + columns.nanmedian(), columns - columns.nanmedian()
    return rows - rows.nanmedian(), columns + rows.nanmedian()


def _spread(logs: Tensor) -> float:
    return float((logs - logs.nanmedian()).abs().nanmedian())


def _match(own: Tensor, others: Sequence[Tensor], head: int) -> Tensor | None:
    """The factors, up to a constant, that the most alike of the others has; None if none is alike.

    Its own are not returned: where single rows are damaged, the others tell what they should be.
    """
    best, closest = None, float("inf")
    for other in others:
        if (fitted := _fit_length(other.to(own.device), len(own), head)) is None:
            continue
        both = own.isfinite() & fitted.isfinite()
        if not bool(both.any()):
            continue
        left, right = own[both], fitted[both]
        shift = (left - right).median()
        for size, distance in (
            (left.abs().median(), (left - right).abs().median()),
            ((left - left.median()).abs().median(), (left - right - shift).abs().median()),
        ):
            if size > 0 and distance <= ALIKE * size and distance < closest:
                best, closest = torch.where(both, fitted + shift, own), float(distance)
    return None if best is None else best.exp().nan_to_num(1.0, 1.0, 1.0)


def _fit_length(factors: Tensor, length: int, head: int) -> Tensor | None:
    """Factors of attention heads that several others share, in the other number of heads; None if they do not fit."""
    if len(factors) == length:
        return factors
    if not head or len(factors) % head or length % head:
        return None
    if length % len(factors) == 0:
        return factors.view(-1, 1, head).expand(-1, length // len(factors), -1).reshape(-1)
    if len(factors) % length == 0:
        return factors.view(length // head, -1, head)[:, 0].reshape(-1)
    return None


def _log(factors: Tensor) -> Tensor:
    """Natural logarithms; NaN for what belongs to a row or column of zeros."""
    return torch.where(factors.abs() > DEAD, factors.abs(), torch.nan).log()
