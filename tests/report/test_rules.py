"""The verdicts of the report: a reason is shown without the number and the limit beside it, and otherwise whole."""

from __future__ import annotations

import pytest

from harness.judge import judge
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Verdict
from harness.report.rules import prepare_verdicts
from harness.rules.at_most import AtMost
from tests.helpers.made_run import make_run


def show_reason(verdict: Verdict) -> str:
    (shown,) = prepare_verdicts(make_run("pass").run.model_copy(update={"verdicts": (verdict,)}))
    return shown.because


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"limit": 100.0}, "the whole interval is within the limit"),
        (
            {"limit": 100.0, "min_documents": 10**6},
            "the whole interval is within the limit; n = 200 documents, expected at least 1000000 (min_documents)",
        ),
    ],
)
def test_the_number_and_the_limit_are_not_said_twice(settings: dict[str, float], reason: str) -> None:
    (measurement,) = [m for m in make_run("pass").run.measurements if m.name == "divergence.kl_mean"]
    rule = AtMost.model_validate({"metric": measurement.name, "why": "w", **settings})
    gate = GateSpec(name="g", source="g.yaml", rules=(RuleSpec(rule=rule, where="g.yaml:1"),))
    (verdict,) = judge([gate], [measurement], [], identical=False)
    assert verdict.because == f"{measurement.name} is {verdict.found}; expected: {verdict.expected}; {reason}"
    assert show_reason(verdict) == reason


def test_no_part_of_a_reason_is_lost_because_it_contains_the_number_found() -> None:
    because = "it needs 12 documents; add documents to the suite"
    verdict = Verdict(
        gate="g", rule="at_most", metric="divergence.kl_mean", status="error", expected="at most 1", found="2",
        because=because, level="block", where="g.yaml:1",
    )  # fmt: skip
    assert show_reason(verdict) == because
