"""Output errors of modules across the depth of the model."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from harness.report.display import add_exact, in_full, percent
from harness.report.drawing import charts
from harness.report.summaries.heat import MOST_COLUMNS, Found, HeatMap, make_heat_map
from harness.report.summaries.suite_tables import SuiteTables

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 40
_NUMBER = re.compile(r"\.(\d+)(?=\.|$)")
_COLUMNS = (
    "document", "module", "kind", "depth",
    "sum_squared_error", "sum_squared_reference", "sum_squared_variant", "dot",
)  # fmt: skip


@dataclass(frozen=True)
class ModuleError:
    """One module over all documents. error: ‖y − ŷ‖/‖y‖ of its output; block: None outside the decoder.

    The error has two parts at right angles, error² = gain² + noise². gain: ⟨y, ŷ⟩/‖y‖² − 1, the part along the output;
    being the same on every input it adds up over layers. noise: ‖ŷ − (1 + gain)·y‖/‖y‖, the rest.
    """

    name: str
    kind: str
    block: int | None
    role: str
    error: float
    sqnr_db: float
    cosine: float
    gain: float
    noise: float


@dataclass(frozen=True)
class Jump:
    """The block after which the relative error rises most."""

    block: int
    before: float
    after: float


@dataclass(frozen=True)
class LayerSummary:
    """All modules in the order in which they run, and those whose numbers are not finite."""

    modules: tuple[ModuleError, ...]
    undefined: tuple[str, ...]

    @property
    def blocks(self) -> list[ModuleError]:
        """The decoder blocks in order."""
        return [module for module in self.modules if module.kind == "block" and module.block is not None]

    def worst(self, most: int) -> list[ModuleError]:
        """The modules with the largest relative error, without blocks (they contain the others)."""
        inside = [module for module in self.modules if module.kind != "block"]
        return sorted(inside, key=lambda module: (-module.error, module.name))[:most]

    def largest(self) -> ModuleError | None:
        """The block whose output has the largest error, the first of several; None without blocks."""
        return max(self.blocks, key=lambda block: block.error, default=None)

    def jump(self) -> Jump | None:
        """Where the error of the blocks' outputs rises most from one block to the next."""
        blocks = self.blocks
        before = [0.0, *(block.error for block in blocks)]
        rises = [(block.error - old, -index) for index, (block, old) in enumerate(zip(blocks, before, strict=False))]
        if not rises or max(rises)[0] <= 0:
            return None
        at = -max(rises)[1]
        return Jump(blocks[at].block or 0, before[at], blocks[at].error)


def read_layers(suite: SuiteTables) -> LayerSummary | None:
    """Sums over all documents of each module, or None without the table."""
    frame = suite.read("layers", _COLUMNS)
    if frame is None:
        return None
    found = [_module(row) for row in _numbers(_sums(frame)).to_dict("records")]
    modules = tuple(module for module in found if isfinite(module.error))
    return LayerSummary(modules, tuple(module.name for module in found if not isfinite(module.error)))


def read_weight_errors(suite: SuiteTables) -> dict[str, float]:
    """Relative error of the weight of each linear layer of the variant, by name; where it is known."""
    frame = suite.read("weights", ("side", "module", "relative_error"))
    if frame is None:
        return {}
    rows = frame[(frame["side"] == "variant") & np.isfinite(frame["relative_error"])]
    return dict(zip(rows["module"].astype(str), rows["relative_error"].astype(float), strict=True))


def _sums(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per module, in order of execution; a sum with NaN or infinity in it stays so."""
    grouped = frame.groupby("module", sort=False)
    sums = grouped[list(_COLUMNS[4:])].sum(skipna=False)
    sums["kind"], sums["depth"] = grouped["kind"].first(), grouped["depth"].first()
    sums["name"] = sums.index.astype(str)
    return sums.sort_values(["depth", "name"], kind="stable")


def _numbers(sums: pd.DataFrame) -> pd.DataFrame:
    """Relative error with its two parts, SQNR and cosine of each row; what is not defined (0/0) is NaN."""
    error, reference, variant, dot = (sums[column].to_numpy(dtype=np.float64) for column in _COLUMNS[4:])
    with np.errstate(all="ignore"):
        return sums.assign(
            error=np.sqrt(error / reference),
            sqnr_db=10 * np.log10(reference / error),
            cosine=dot / np.sqrt(reference * variant),
            gain=dot / reference - 1,
            # From the error: variant − dot²/reference would cancel where the error is small.
            noise=np.sqrt(np.maximum(0.0, error / reference - (dot / reference - 1) ** 2)),
        )


def _module(row: dict[Hashable, Any]) -> ModuleError:
    name = str(row["name"])
    return ModuleError(
        name=name,
        kind=str(row["kind"]),
        block=block_of(name),
        role=role_of(name),
        error=float(row["error"]),
        sqnr_db=float(row["sqnr_db"]),
        cosine=float(row["cosine"]),
        gain=float(row["gain"]),
        noise=float(row["noise"]),
    )


def block_of(module: str) -> int | None:
    """The number of the decoder block a module belongs to: the first number in its path."""
    number = _NUMBER.search(module)
    return int(number[1]) if number else None


def role_of(module: str) -> str:
    """The role of the module within its block, with further numbers (experts) replaced: "mlp.experts.*.down_proj"."""
    block = _NUMBER.search(module)
    after = module[block.end() + 1 :] if block and block.end() < len(module) else module
    return _NUMBER.sub(".*", after)


def map_modules(found: LayerSummary) -> HeatMap | None:
    """The largest error of every role (q_proj, …) of linear layers and stacks of experts, by block."""
    inside = [module for module in found.modules if module.kind in {"linear", "experts"}]
    cells = [Found(m.role, m.block, m.error, m.name) for m in inside if m.block is not None]
    return make_heat_map(cells, MOST_ROWS)


def draw_depth(found: LayerSummary) -> Markup:
    """The blocks' outputs as a line, attention and MLP of each block as dots."""
    blocks = found.blocks
    place = {block.block: index for index, block in enumerate(blocks)}
    inside = [module for module in found.modules if module.kind in {"attention", "mlp"} and module.block in place]
    dots = [
        charts.Dot(place[module.block], module.error, f"{module.name}: {in_full(module.error)}", module.kind)
        for module in inside
        if len(blocks) <= MOST_COLUMNS
    ]
    worst = found.largest() or blocks[0]
    said = f"{len(blocks)} blocks; largest relative error {percent(worst.error)} after block {worst.block}"
    return charts.depth(
        [block.error for block in blocks], dots, [str(block.block) for block in blocks],
        "Relative error of block outputs through the depth", said,
    )  # fmt: skip


def draw_parts(found: LayerSummary) -> Markup:
    """The two parts of the error of the blocks' outputs: the noise as a line, the size of the gain as dots."""
    blocks = found.blocks
    dots = [
        charts.Dot(
            index,
            abs(block.gain),
            f"block {block.block}: gain {add_exact(_format_gain(block), block.gain)}",
            "reference",
        )
        for index, block in enumerate(blocks)
    ]
    most = max(blocks, key=lambda block: abs(block.gain))
    said = f"{len(blocks)} blocks; largest gain {_format_gain(most)} after block {most.block}"
    return charts.depth(
        [block.noise for block in blocks], dots, [str(block.block) for block in blocks],
        "Gain and noise of block outputs through the depth", said,
    )  # fmt: skip


def _format_gain(block: ModuleError) -> str:
    return f"{'+' if block.gain > 0 else ''}{percent(block.gain)}"
