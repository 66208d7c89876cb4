"""The numbers of a run without their records: as rows of a table, and as one flat mapping."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import get_args

from harness.records import Measurement, Run, Status
from harness.report import words
from harness.report.digest import digest
from harness.report.display import clean

COLUMNS: Mapping[str, type[str] | type[float] | type[int]] = {
    "run": str, "verdict": str, "metric": str, "slice": str, "labels": str, "title": str, "unit": str, "better": str,
    "basis": str, "neutral": float, "reference": float, "variant": float, "change": float, "low": float, "high": float,
    "variant_low": float, "variant_high": float, "confidence": float, "n": int, "clusters": int, "method": str,
    "non_finite": str, "not_judged": str, "noise_floor": float,
}  # fmt: skip
"""The columns of the rows, with their types; any number may be missing."""
_NUMBERS = ("reference", "variant", "change", "low", "high")


def list_rows(run: Run) -> list[dict[str, str | float | None]]:
    """A row for every measurement, those of slices after those of the whole. labels: as JSON."""
    return [_row(run, part, m) for part, m in _list_measurements(run)]


def flatten(run: Run) -> dict[str, float]:
    """Every number by its metric, labels and side: "perplexity.ratio.high". What is missing or not finite is left out.

    Beside them ``exit_code``, ``warnings``, and how many blocking rules have which status.
    """
    counts = digest(run).counts
    flat: dict[str, float] = {"exit_code": run.exit_code, "warnings": run.warnings}
    flat |= {f"rules.{status}": counts[status] for status in get_args(Status)}
    for part, m in _list_measurements(run):
        labels = {key: value for key, value in m.labels.items() if not key.startswith("worst")}
        name = words.add_labels(m.name, labels | ({"slice": part} if part else {}))
        flat |= {f"{clean(name)}.{side}": value for side in _NUMBERS if (value := getattr(m, side)) is not None}
    return flat


def _list_measurements(run: Run) -> Iterator[tuple[str, Measurement]]:
    yield from (("", m) for m in run.measurements)
    for part in run.slices:
        yield from ((f"{part.suite} {part.label}={part.value}", m) for m in part.measurements)


def _row(run: Run, part: str, m: Measurement) -> dict[str, str | float | None]:
    texts = {
        "run": run.name,
        "verdict": run.verdict,
        "metric": m.name,
        "slice": part,
        "labels": json.dumps(m.labels, sort_keys=True, ensure_ascii=False) if m.labels else "",
        "title": words.metric(run, m.name),
        "unit": m.unit,
        "better": m.better,
        "basis": m.basis,
        "method": m.method,
        "non_finite": m.non_finite or "",
        "not_judged": m.not_judged,
    }
    numbers = {name: getattr(m, name) for name, kind in COLUMNS.items() if kind is not str and name != "noise_floor"}
    return (
        {key: clean(text, 2000) for key, text in texts.items()}
        | numbers
        | {"noise_floor": m.floor.value if m.floor else None}
    )
