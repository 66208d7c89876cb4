"""What the verdicts of a run come to: its verdict, its exit code, and its class of failure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from harness.errors import FailureClass
from harness.records.result import Verdict

Overall = Literal["pass", "fail", "inconclusive", "error"]
EXIT_CODES: dict[Overall, Literal[0, 1, 2, 3]] = {"error": 2, "fail": 1, "inconclusive": 3, "pass": 0}
"""Worst first."""


class Conclusion(NamedTuple):
    """What the verdicts of a run come to. failure: None for a pass."""

    verdict: Overall
    exit_code: Literal[0, 1, 2, 3]
    failure: FailureClass | None


def overall(verdicts: Iterable[Verdict]) -> tuple[Overall, Literal[0, 1, 2, 3]]:
    """The worst blocking status and its exit code. A run without judged rules, or with an error, is an error."""
    return conclusion(verdicts)[:2]


def conclusion(verdicts: Iterable[Verdict]) -> Conclusion:
    """The worst blocking status, its exit code, and the class of failure of the first rule that has it."""
    blocking = [verdict for verdict in verdicts if verdict.level == "block"]
    statuses = {verdict.status for verdict in blocking}
    if not statuses or not statuses <= EXIT_CODES.keys():
        return Conclusion("error", EXIT_CODES["error"], "usage")
    worst = next(status for status in EXIT_CODES if status in statuses)
    failure = next(verdict.failure for verdict in blocking if verdict.status == worst)
    return Conclusion(worst, EXIT_CODES[worst], failure)
