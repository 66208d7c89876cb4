"""The verdict of a run in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from harness.records import Run
from harness.report import display, rules, words
from harness.report.rules import Judged


def headline(run: Run) -> str:
    """The verdict in two to four words."""
    return words.STATUSES[run.verdict].headline


def reason(run: Run) -> str:
    """Why the verdict is what it is: which blocking rules decided, with what was found and the limit."""
    judged = rules.judged(run)
    blocking = [item for item in judged if item.verdict.level == "block"]
    found = [item for item in blocking if item.verdict.status == run.verdict]
    if not blocking:
        return "No blocking rule was judged, so nothing is known that would let this variant ship."
    if run.verdict == "pass":
        return _passed(judged, len(blocking))
    if not found:
        return "The run is marked so although no blocking rule says it; read the rules and notes below."
    count = _count(len(found), len(blocking))
    one = len(found) == 1
    lead = {
        "fail": f"{count} {'is' if one else 'are'} broken",
        "inconclusive": f"Nothing failed, but {_lower(count)} cannot be decided yet",
        "error": f"{count} could not be judged",
    }[run.verdict]
    return f"{lead}: {_listed([_named(item) for item in found])}."


def _passed(judged: Sequence[Judged], blocking: int) -> str:
    lead = "The blocking rule holds." if blocking == 1 else f"All {blocking} blocking rules hold."
    open_ = [item for item in judged if item.verdict.level == "warn" and item.verdict.status not in {"pass", "skipped"}]
    if not open_:
        return lead
    names = _listed([_named(item) for item in open_])
    do = "One advisory rule does" if len(open_) == 1 else f"{len(open_)} advisory rules do"
    return f"{lead} {do} not: {names}."


def _count(some: int, all_: int) -> str:
    if all_ == 1:
        return "The blocking rule"
    return f"All {all_} blocking rules" if some == all_ else f"{some} of {all_} blocking rules"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _named(item: Judged) -> str:
    """The metric with what decided: "perplexity ratio (1.093, limit 1.02)"."""
    name = display.clean(item.title or item.verdict.rule, 80)
    if item.numbers:
        return f"{name} ({item.numbers})"
    return f"{name} ({display.clean(item.because, 160)})" if item.verdict.status == "error" else name


def _listed(names: Sequence[str], most: int = 4) -> str:
    unique = list(dict.fromkeys(names))
    shown, more = unique[:most], len(unique) - most
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
