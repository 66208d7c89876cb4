"""Mixture-of-experts layers: tokens per expert, routing agreement, and experts without calibration tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report.summaries.heat import Found, HeatMap, make_heat_map
from harness.report.summaries.layers import block_of
from harness.report.summaries.suite_tables import SuiteTables

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("side", "module", "expert", "tokens", "agreeing", "calibration")
_NAMED = 12
MOST_ROWS = 128


@dataclass(frozen=True)
class Mixture:
    """The experts of one MoE layer of the variant.

    fewest, most: smallest and largest number of tokens of an expert, None if unknown. agreement: share of routings that
    the reference makes, too. fewest_calibration: None without calibration. unreached, unused: experts without a
    calibration token, and without an evaluation token.
    """

    module: str
    experts: int
    fewest: int | None
    most: int | None
    agreement: float | None
    fewest_calibration: int | None
    unreached: tuple[int, ...]
    unused: tuple[int, ...]

    @property
    def unreached_words(self) -> str:
        """The indices of experts without calibration tokens; of many, the first."""
        return _list_experts(self.unreached)

    @property
    def unused_words(self) -> str:
        """The indices of experts without tokens; of many, the first."""
        return _list_experts(self.unused)


def read_mixtures(suite: SuiteTables) -> list[Mixture]:
    """Every MoE layer of the variant: those with most uncalibrated experts first, then in order.

    Empty for dense models, and without the table.
    """
    frame = suite.read("experts", _COLUMNS)
    if frame is None:
        return []
    rows = frame[frame["side"] == "variant"]
    mixtures = [_mixture(str(module), part) for module, part in rows.groupby("module", sort=False)]
    return sorted(mixtures, key=lambda mixture: -len(mixture.unreached))


def map_weight_errors(suite: SuiteTables) -> HeatMap | None:
    """The relative error of the weights of each expert, by MoE layer: the largest of the expert's matrices."""
    frame = suite.read("expert_weights", ("module", "expert", "matrix", "relative_error"))
    if frame is None:
        return None
    rows = zip(*(frame[name].tolist() for name in frame.columns), strict=True)
    labels = _label_rows(dict.fromkeys(frame["module"]))
    found = [Found(labels[module], int(k), float(error), f"{module}.{k}.{matrix}") for module, k, matrix, error in rows]
    return make_heat_map(found, MOST_ROWS)


def _label_rows(modules: Iterable[str]) -> dict[str, str]:
    """The number of the block of each mixture; its whole path where two are in one block or one is in none."""
    blocks = {module: block_of(module) for module in modules}
    if None in blocks.values() or len(set(blocks.values())) < len(blocks):
        return {module: module for module in blocks}
    return {module: str(block) for module, block in blocks.items()}


def _mixture(module: str, rows: pd.DataFrame) -> Mixture:
    tokens, calibration, agreeing = rows["tokens"], rows["calibration"], rows["agreeing"]
    counted, fitted, compared = (bool((column >= 0).all()) for column in (tokens, calibration, agreeing))
    total = int(tokens.sum())
    return Mixture(
        module=module,
        experts=len(rows),
        fewest=int(tokens.min()) if counted else None,
        most=int(tokens.max()) if counted else None,
        agreement=float(agreeing.sum() / total) if counted and compared and total else None,
        fewest_calibration=int(calibration.min()) if fitted else None,
        unreached=_numbers(rows, calibration == 0),
        unused=_numbers(rows, tokens == 0),
    )


def _numbers(rows: pd.DataFrame, chosen: pd.Series[bool]) -> tuple[int, ...]:
    return tuple(int(expert) for expert in rows["expert"][chosen])


def _list_experts(experts: tuple[int, ...]) -> str:
    more = f" and {len(experts) - _NAMED} more" if len(experts) > _NAMED else ""
    return ", ".join(map(str, experts[:_NAMED])) + more
