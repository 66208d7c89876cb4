"""The measure ``comparability``: differences between what users of both sides load beside weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.comparability import load_parts
from harness.measures import Measure
from harness.measures._shared import Count, make_counted, require
from harness.records import Comparison, Difference, Measurement, Metric, Skipped

if TYPE_CHECKING:
    import pandas as pd

COLUMN = "comparison"
FAMILY = "comparability"


def _metric(name: str, title: str, description: str) -> Metric:
    return Metric(
        name=f"{FAMILY}.{name}",
        title=title,
        unit="differences",
        better="lower",
        description=description,
        units=FAMILY,
        spread="counted",
        concern="comparability",
    )


BY_PART = {
    part.kind: _metric(part.kind, f"differences of {part.title}", f"differences of {part.title} that users could meet")
    for part in load_parts()
}
AT_ONCE = _metric(
    "at_once", "differences that change behaviour at once", "differences within the context that the reference declares"
)
BEYOND = _metric(
    "beyond_inputs",
    "differences beyond ordinary inputs",
    "differences that matter for long contexts, rare characters or inputs other than text",
)


class Comparability(Measure):
    """How many differences there are between the configuration, stop tokens, chat template and tokenizer of both sides.

    Part of every suite: it needs no documents and no model. Differences that change nothing, or are in force for every
    token, are listed in the report but not counted. A part that could not be compared is Skipped unless a difference
    was found in it, and so is a severity of which no difference was found in the rest.
    """

    table: ClassVar[str] = "comparability"
    metrics: ClassVar[tuple[Metric, ...]] = (*BY_PART.values(), AT_ONCE, BEYOND)
    columns: ClassVar[tuple[str, ...] | None] = (COLUMN,)

    def sample_size(self, documents: int | None) -> int | None:
        """0: differences are counted, not sampled."""
        return 0

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Count the differences of every part, and of every severity."""
        require(table, (COLUMN,), FAMILY)
        comparison = read_comparison(table)
        lost = {each.part: each.reason for each in comparison.omissions}
        rest = "; ".join(dict.fromkeys(lost.values()))
        matter = [each for each in comparison.differences if each.severity != "informative"]
        found = [
            _count(metric, [each for each in matter if each.part == part], lost.get(part, ""))
            for part, metric in BY_PART.items()
        ]
        found.append(_count(AT_ONCE, comparison.of_severity("at_once"), rest))
        found.append(_count(BEYOND, comparison.of_severity("beyond_inputs"), rest))
        return found


def read_comparison(table: pd.DataFrame) -> Comparison:
    """The comparison that the table ``comparability`` holds."""
    return Comparison.model_validate_json(str(table[COLUMN].iloc[0]))


def _count(metric: Metric, differences: Sequence[Difference], lost: str) -> Measurement | Skipped:
    """How many differences there are. lost: what could not be compared, with the reason."""
    missing = f"not everything could be compared: {lost}" if lost else ""
    if missing and not differences:
        return Skipped(measure=metric.name, reason=missing, unsupported=True)
    said = "; ".join(f"{each.field}: {each.reference} → {each.variant}, {each.meaning}" for each in differences)
    what = "; ".join(filter(None, ("exact", said, missing)))
    return make_counted(metric, what, Count(max(len(differences), 1), 0), change=float(len(differences)))
