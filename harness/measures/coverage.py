"""The measure ``coverage``: what of both models no document exercised, and what their files leave unquantized."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from harness.measures import Measure
from harness.measures._shared import Count, make_counted, require
from harness.records import Measurement, Metric, Skipped

if TYPE_CHECKING:
    import pandas as pd

PARAMETERS = Metric(
    name="coverage.untouched_parameters",
    title="parameters that no document touched",
    unit="share",
    better="lower",
    description="share of the parameters that no document touched: towers, experts, rows of embeddings, unread tensors",
    sides=True,
    spread="counted",
    concern="quantization_coverage",
)
BYTES = Metric(
    name="coverage.untouched_bytes",
    title="bytes that no document touched",
    unit="share",
    better="lower",
    description="share of the stored bytes that no document touched",
    sides=True,
    spread="counted",
    concern="quantization_coverage",
)
CHANGED = Metric(
    name="coverage.untouched_changed",
    title="untouched and changed",
    unit="share",
    better="lower",
    description=(
        "share of the variant's parameters that no document touched, that differ from the reference's by more than "
        "rounding to 16 bits, and that no compression explains"
    ),
    spread="counted",
    concern="comparability",
)
COMPRESSED = Metric(
    name="coverage.untouched_compressed",
    title="untouched and compressed",
    unit="share",
    better="lower",
    description="share of the variant's parameters that were compressed and that no document touched",
    spread="counted",
    concern="quantization_coverage",
)
DAMAGED = Metric(
    name="coverage.untouched_damaged",
    title="untouched and damaged",
    unit="share",
    better="lower",
    description=(
        "share of the variant's parameters that were compressed, that no document touched, and whose relative error is "
        "above 0.9: they say next to nothing of the reference's"
    ),
    spread="counted",
    concern="numerics",
)
MISSING = Metric(
    name="coverage.missing",
    title="missing in the variant",
    unit="share",
    better="lower",
    description="share of the reference's parameters, of those that no text runs, that the variant does not have",
    spread="counted",
    concern="comparability",
)
NON_FINITE = Metric(
    name="coverage.non_finite",
    title="tensors with NaN or infinity",
    unit="tensors",
    better="lower",
    description="tensors of the variant, its unread ones included, with NaN or infinity that the reference lacks there",
    spread="counted",
    concern="numerics",
)
UNQUANTIZED = Metric(
    name="coverage.unquantized",
    title="left unquantized",
    unit="share",
    better="lower",
    description=(
        "share of the weights that the files' quantization config speaks of, and does not name as left plain, that are "
        "plain floats"
    ),
    spread="counted",
    concern="quantization_coverage",
)
COLUMNS = (
    "side",
    "name",
    "kind",
    "units",
    "parameters",
    "bytes",
    "compressed",
    "missing",
    "seen",
    "changed",
    "damaged",
)
_PARTS = ("module", "experts", "rows", "unread")
_MOST = 4


class Coverage(Measure):
    """What the measurements do not show, because no document reached it, and layers that were never quantized.

    All numbers are counted. An untouched part that is equal on both sides is only told as a share; one that differs is
    a change whose effect nothing shows.
    """

    table: ClassVar[str] = "coverage"
    metrics: ClassVar[tuple[Metric, ...]] = (
        PARAMETERS,
        BYTES,
        CHANGED,
        COMPRESSED,
        DAMAGED,
        MISSING,
        NON_FINITE,
        UNQUANTIZED,
    )
    columns: ClassVar[tuple[str, ...] | None] = COLUMNS
    of_weights: ClassVar[tuple[str, ...]] = (CHANGED.name, DAMAGED.name, MISSING.name)

    def sample_size(self, documents: int | None) -> int | None:
        """0: parameters are counted, not sampled."""
        return 0

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Compute all metrics."""
        require(table, COLUMNS, "coverage")
        totals = {str(row["side"]): row for row in table[table["kind"] == "total"].to_dict("records")}
        parts = [_Part.read(row) for row in table[table["kind"].isin(_PARTS)].to_dict("records")]
        before = [part for part in parts if part.side == "reference"]
        after = [part for part in parts if part.side == "variant"]
        size = {side: float(totals[side]["parameters"]) for side in ("reference", "variant")}
        stated = table[table["kind"] == "stated"]
        plain = stated[~stated["compressed"]]
        bad = table[table["kind"] == "non_finite"]
        return [
            self._share(PARAMETERS, before, after, totals, "parameters"),
            self._share(BYTES, before, after, totals, "bytes"),
            _sum(CHANGED, after, "changed", False, size["variant"]),
            _sum(COMPRESSED, after, "untouched", True, size["variant"]),
            _sum(DAMAGED, after, "damaged", True, size["variant"]),
            _sum(MISSING, before, "missing", None, size["reference"]),
            _one(NON_FINITE, float(len(bad)), _list(list(bad["name"])), 1),
            _one(
                UNQUANTIZED,
                float(plain["parameters"].sum()) / max(1.0, float(stated["parameters"].sum())),
                f"{len(stated) - len(plain)} of {len(stated)} layers that the config speaks of are quantized; not: "
                f"{_list(list(plain['name']))}"
                if len(stated)
                else "no quantization config",
                max(1, len(stated)),
            ),
        ]

    def _share(
        self,
        metric: Metric,
        before: Sequence[_Part],
        after: Sequence[_Part],
        totals: Mapping[str, Mapping[Hashable, Any]],
        column: str,
    ) -> Measurement:
        shares = {
            side: sum(getattr(part, column) * part.share("untouched") for part in parts)
            / max(1.0, float(totals[side][column]))
            for side, parts in (("reference", before), ("variant", after))
        }
        names = [part.name for part in after if part.share("untouched")]
        count = Count(int(totals["variant"]["parameters"]) or 1, 0)
        change = shares["variant"] - shares["reference"]
        what = f"counted; untouched, wholly or in part: {_list(names)}"
        return make_counted(metric, what, count, change=change, **shares)


@dataclass(frozen=True)
class _Part:
    """One row about a part. seen, changed, damaged: bool [units]."""

    side: str
    name: str
    parameters: int
    bytes: int
    compressed: bool
    gone: bool
    seen: np.ndarray
    differs: np.ndarray
    broken: np.ndarray

    @classmethod
    def read(cls, row: dict[Hashable, Any]) -> _Part:
        units = int(row["units"])
        bits = [_units(str(row[name]), units) for name in ("seen", "changed", "damaged")]
        sizes = int(row["parameters"]), int(row["bytes"])
        return cls(str(row["side"]), str(row["name"]), *sizes, bool(row["compressed"]), bool(row["missing"]), *bits)

    def share(self, what: str) -> float:
        """Share of the units that no document touched, and which of those are ``what``."""
        chosen = {
            "untouched": np.ones_like(self.seen),
            "changed": self.differs,
            "damaged": self.broken,
            "missing": np.full_like(self.seen, self.gone),
        }[what]
        return float((chosen & ~self.seen).mean()) if len(self.seen) else 0.0


def _sum(metric: Metric, parts: Sequence[_Part], what: str, compressed: bool | None, size: float) -> Measurement:
    """The share of ``size`` parameters that are in untouched units which are ``what``."""
    chosen = [part for part in parts if compressed is None or part.compressed == compressed]
    found = sum(part.parameters * part.share(what) for part in chosen) / max(1.0, size)
    return _one(metric, found, f"counted: {_list([part.name for part in chosen if part.share(what)])}", int(size) or 1)


def _one(metric: Metric, value: float, what: str, count: int) -> Measurement:
    return make_counted(metric, what, Count(count, 0), change=value, variant=value)


def _list(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + rest if names else "none"


def _units(bits: str, count: int) -> np.ndarray:
    packed = np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)
    return np.unpackbits(packed)[:count].astype(bool) if bits else np.zeros(count, dtype=bool)
