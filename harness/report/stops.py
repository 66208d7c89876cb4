"""Sequential sampling: how many documents a suite needed until its rules were decided."""

from __future__ import annotations

from harness.records import Run, Stop
from harness.report import display


def describe_stops(run: Run) -> list[str]:
    """One sentence for each suite with sequential sampling."""
    return [_sentence(stop) for stop in run.stops]


def _sentence(stop: Stop) -> str:
    most, seen = display.number(stop.looks[-1]), display.number(stop.documents)
    look = f"look {stop.looks.index(stop.documents) + 1} of {len(stop.looks)}"
    if not stop.watched:
        return f"Suite {stop.suite}: all {most} documents were measured, because no rule waits for them."
    if stop.undecided:
        count = len(stop.undecided)
        left = f"{stop.undecided[0]}{f' and {count - 1} more' if count > 1 else ''}"
        said = f"all {most} documents did not decide {left}"
    else:
        said = f"{seen} of at most {most} documents decided every rule that waits for them ({look})"
    return f"Suite {stop.suite}: {said}; {_fixed(stop)}."


def _fixed(stop: Stop) -> str:
    if stop.fixed is None:
        return "no number of documents that is fixed beforehand is known to be enough"
    return f"a number fixed beforehand would have been {display.number(stop.fixed)}, for 80 % power"
