"""States for each suite with sequential sampling how many documents it needed until its rules were decided."""

from __future__ import annotations

from harness.records import Run, Stop
from harness.report import display


def describe_stops(run: Run) -> list[str]:
    """One sentence for each suite with sequential sampling."""
    return [_sentence(stop) for stop in run.stops]


def _sentence(stop: Stop) -> str:
    most, seen = display.number(stop.looks[-1]), display.number(stop.documents)
    if not stop.watched:
        return f"Suite {stop.suite}: all {most} documents were measured, because no rule extends the sample."
    count = len(stop.undecided)
    rules = f"{stop.undecided[0]}{f' and {count - 1} more' if count > 1 else ''}" if count else ""
    look = f"interim look {stop.looks.index(stop.documents) + 1} of {len(stop.looks)}"
    if not count:
        outcome = f"every rule was decided after {seen} of at most {most} documents ({look})"
    elif stop.documents < stop.looks[-1]:
        outcome = f"a blocking rule failed after {seen} of at most {most} documents ({look}), with {rules} undecided"
    else:
        outcome = f"undecided after all {most} documents: {rules}"
    return f"Suite {stop.suite}: {outcome}; {_state_fixed_size(stop)}."


def _state_fixed_size(stop: Stop) -> str:
    if stop.fixed is None:
        return "no fixed sample size is known to reach 80 % power"
    return f"a fixed sample size with 80 % power would have been {display.number(stop.fixed)} documents"
