"""States for each suite with sequential sampling how many documents or items it needed until its rules were decided."""

from __future__ import annotations

from collections.abc import Sequence

from harness.records import Run, Stop
from harness.report import display


def describe_stops(run: Run) -> list[str]:
    """One sentence for the documents of a suite that were drawn, one for each of its tasks that is left undecided, one
    for those together of which no more was drawn because something had failed, and one for its other tasks together."""
    said: list[str] = []
    for suite in dict.fromkeys(stop.suite for stop in run.stops):
        stops = [stop for stop in run.stops if stop.suite == suite]
        plain = [stop for stop in stops if _is_plain(stop)]
        together = plain if len(plain) > 1 else []
        said += [_describe_tasks(together)] if together else []
        cut_short = [stop for stop in stops if stop.task and stop.failed]
        said += [_sentence(stop) for stop in stops if stop not in together and stop not in cut_short]
        said += [_describe_cut(cut_short)] if cut_short else []
    return said


def _is_plain(stop: Stop) -> bool:
    """Whether it is a task of which nothing is left to say but how many items decided it."""
    return bool(stop.task and stop.watched and not stop.undecided)


def _describe_tasks(stops: Sequence[Stop]) -> str:
    counts = ", ".join(f"{stop.task} {display.number(stop.documents)}" for stop in stops)
    drawn, most = sum(stop.documents for stop in stops), sum(stop.looks[-1] for stop in stops)
    return (
        f"Suite {stops[0].suite}: the rules of {len(stops)} tasks were decided after {display.number(drawn)} of at "
        f"most {display.number(most)} items ({counts})."
    )


def _describe_cut(stops: Sequence[Stop]) -> str:
    first = stops[0].failed[0]
    more = f" and {len(stops[0].failed) - 1} more" if len(stops[0].failed) > 1 else ""
    counts = ", ".join(
        f"{stop.task} {display.number(stop.documents)} of {display.number(stop.looks[-1])}" for stop in stops
    )
    return (
        f"Suite {stops[0].suite}: once {first}{more} had failed, no more items were drawn; tasks with rules left open: "
        f"{counts} (items: {{after_failure: continue}} decides them)."
    )


def _sentence(stop: Stop) -> str:
    most, seen = display.number(stop.looks[-1]), display.number(stop.documents)
    units, whose = ("items", f"Suite {stop.suite}, {stop.task}") if stop.task else ("documents", f"Suite {stop.suite}")
    if not stop.watched:
        return f"{whose}: all {most} {units} were measured, because no rule extends the sample."
    count = len(stop.undecided)
    rules = f"{stop.undecided[0]}{f' and {count - 1} more' if count > 1 else ''}" if count else ""
    look = f"interim look {stop.looks.index(stop.documents) + 1} of {len(stop.looks)}"
    if not count:
        outcome = f"every rule was decided after {seen} of at most {most} {units} ({look})"
    elif stop.documents < stop.looks[-1]:
        outcome = f"a blocking rule failed after {seen} of at most {most} {units} ({look}), with {rules} undecided"
    else:
        outcome = f"undecided after all {most} {units}: {rules}"
    return f"{whose}: {outcome}; {_state_fixed_size(stop, units)}."


def _state_fixed_size(stop: Stop, units: str) -> str:
    if stop.fixed is None:
        return "no fixed sample size is known to reach 80 % power"
    return f"a fixed sample size with 80 % power would have been {display.number(stop.fixed)} {units}"
