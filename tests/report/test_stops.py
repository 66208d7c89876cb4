"""How many documents were needed, in one sentence, on the terminal and in the report."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from harness.records import Stop
from harness.report.stops import describe_stops
from harness.system.resources import folder
from harness.terminal import Terminal
from harness.writers.report_html import render
from tests.helpers.made_run import make_run

LOOKS = (40, 63, 100, 159, 252, 400)
DECIDED = "Suite core: every rule was decided after 63 of at most 400 documents (interim look 2 of 6)"


def stop(**fields: Any) -> Stop:
    given: dict[str, Any] = {
        "suite": "core",
        "looks": LOOKS,
        "documents": 63,
        "watched": ("not_worse perplexity.ratio",),
    }
    return Stop(**(given | fields))


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"fixed": 210}, f"{DECIDED}; a fixed sample size with 80 % power would have been 210 documents."),
        ({}, f"{DECIDED}; no fixed sample size is known to reach 80 % power."),
        (
            {"watched": (), "documents": 400},
            "Suite core: all 400 documents were measured, because no rule extends the sample",
        ),
        (
            {"documents": 400, "undecided": ("a b", "c d", "e f"), "fixed": 900},
            "Suite core: undecided after all 400 documents: a b and 2 more; a fixed sample size with 80 % power would",
        ),
        (
            {"undecided": ("a b",)},
            "Suite core: a blocking rule failed after 63 of at most 400 documents (interim look 2 of 6), with "
            "a b undecided",
        ),
        ({"documents": 400, "fixed": 9}, "Suite core: every rule was decided after 400 of at most 400 documents"),
    ],
)
def test_what_is_said_of_a_stop(fields: dict[str, Any], wanted: str) -> None:
    run = make_run(documents=20, length=20).run
    (said,) = describe_stops(run.model_copy(update={"stops": (stop(**fields),)}))
    assert said.startswith(wanted)


def test_tasks_that_were_decided_share_a_sentence() -> None:
    """An undecided one has its own, with what it would take; one that no rule waits for has, too."""
    run = make_run(documents=20, length=20).run
    stops = (
        stop(),
        stop(task="facts"),
        stop(task="crowd", documents=400, undecided=("not_worse tasks.crowd.accuracy",), fixed=900),
        stop(task="sums", documents=159),
        stop(task="prose", documents=400, watched=()),
    )
    together, documents, crowd, prose = describe_stops(run.model_copy(update={"stops": stops}))
    assert documents.startswith(DECIDED)
    assert together == (
        "Suite core: the rules of 2 tasks were decided after 222 of at most 800 items (facts 63, sums 159)."
    )
    assert crowd == (
        "Suite core, crowd: undecided after all 400 items: not_worse tasks.crowd.accuracy; a fixed sample size with "
        "80 % power would have been 900 items."
    )
    assert prose == "Suite core, prose: all 400 items were measured, because no rule extends the sample."


def test_tasks_that_a_failure_cut_short_share_a_sentence() -> None:
    run = make_run(documents=20, length=20).run
    failed = {"failed": ("not_worse tasks.sums.accuracy", "at_most tasks.sums.flips"), "documents": 40}
    stops = (
        stop(task="sums", documents=159),
        stop(task="crowd", undecided=("not_worse tasks.crowd.accuracy",), **failed),
        stop(task="prose", watched=(), **failed),
    )
    sums, cut = describe_stops(run.model_copy(update={"stops": stops}))
    assert "sums: every rule was decided after 159 of at most 400 items" in sums
    assert cut == (
        "Suite core: once not_worse tasks.sums.accuracy and 1 more had failed, no more items were drawn; tasks with "
        "rules left open: crowd 40 of 400, prose 40 of 400 (items: {after_failure: continue} decides them)."
    )


def test_a_run_of_a_fixed_size_says_nothing() -> None:
    assert describe_stops(make_run(documents=20, length=20).run) == []


def test_terminal_and_report_say_it() -> None:
    made = make_run(documents=20, length=20)
    run = made.run.model_copy(update={"stops": (stop(fixed=210),)})
    out = io.StringIO()
    Terminal(Console(file=out, width=60)).verdict(run)
    assert DECIDED in out.getvalue()
    assert DECIDED in render(run, made.tables, folder("reports"))
    assert DECIDED not in render(made.run, made.tables, folder("reports"))
