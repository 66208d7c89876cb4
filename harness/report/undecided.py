"""What would decide a rule that is undecided: how many documents (items, blocks), and where to ask for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from harness.report import display
from harness.report.drawing.charts import Limited

MOST = 1_000_000
"""Beyond this no number is shown: the estimate is practically at its limit."""


@dataclass(frozen=True)
class Need:
    """The size of a sample that would decide a rule, all in all, if the estimate stays where it is; seen: its size now.

    outcome: how the rule would be decided; None where only its min_documents is not reached.
    """

    documents: int
    seen: int
    outcome: Literal["pass", "fail"] | None


def find_need(found: Limited, seen: int, min_documents: int | None) -> Need | None:
    """The sample that shrinks the interval until it no longer crosses a limit, as its width goes with 1/√n.

    None where the interval crosses no limit and ``min_documents`` is reached, where there is no interval, where the
    estimate is the limit itself, and beyond MOST.
    """
    outcome, needed = None, min_documents or 0
    if crossing := _find_crossing(found):
        ratio, outcome = crossing
        if not math.isfinite(ratio) or seen * ratio**2 >= MOST:
            return None
        needed = max(needed, math.floor(seen * ratio**2) + 1)
    return Need(needed, seen, outcome) if needed > seen else None


def _find_crossing(number: Limited) -> tuple[float, Literal["pass", "fail"]] | None:
    """How many times narrower the interval must be not to reach the limit, and on which side it then lies."""
    if number.interval is None:
        return None
    (low, high), (lower, upper), value = number.interval, number.bounds, number.value
    sides = [(limit, reach, sign) for limit, reach, sign in (
        (upper, (high, low), 1), (lower, (low, high), -1),
    ) if limit is not None and low <= limit <= high]  # fmt: skip
    found: list[tuple[float, Literal["pass", "fail"]]] = []
    for limit, (bad, good), sign in sides:
        within = sign * (limit - value) > 0
        distance, width = abs(limit - value), abs((bad if within else good) - value)
        found.append((width / distance if distance else math.inf, "pass" if within else "fail"))
    return max(found, key=lambda each: (each[1] == "fail", each[0]), default=None)


def describe_need(need: Need, units: str) -> str:
    """The need in one sentence."""
    more = f"{display.count(need.documents - need.seen, f'more {units}')} ({display.number(need.documents)} in all)"
    if need.outcome is None:
        return f"Needs {more}, as the rule's min_documents asks."
    return f"About {more} would decide it, as a {need.outcome} if the estimate stays where it is."


def describe_remedy(need: Need, units: str, asked: dict[str, Any], failed: str = "") -> tuple[str, str]:
    """What to change in which file, and the command to run then. failed: the rule because of which no more was
    drawn."""
    suites = [each for each in asked.get("suites") or () if isinstance(each, dict)]
    where = f"suite {suites[0].get('name', '')}" if len(suites) == 1 else "the suite"
    command = f"harness check {asked.get('source', 'variant.yaml')}"
    if failed:
        all_of_them = f", or write items: {{after_failure: continue}} in {where}" if units == "items" else ""
        return f"No more {units} were drawn, because {failed} had failed: repair that{all_of_them}, then run", command
    drawn = units == "items" and any(
        each.get("items") for suite in suites for each in suite.get("measures") or () if isinstance(each, dict)
    )
    change = (
        f"{units}: {{max: {need.documents}}}" if drawn or units == "documents" else f"{need.documents} {units} or more"
    )
    return f"In {where} ask for {change}, then run", command
