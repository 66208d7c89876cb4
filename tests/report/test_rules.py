"""The verdicts of the report: a reason is shown without the number and the limit beside it, and otherwise whole."""

from __future__ import annotations

import pytest

from harness.judge import judge, rejudge
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Verdict
from harness.report.rules import prepare_verdicts
from harness.rules.at_least import AtLeast
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


@pytest.mark.parametrize(
    ("kind", "metric", "settings", "wanted"),
    [
        (AtLeast, "divergence.top1_agreement", {"limit": 0.9}, "96.407 %, 95 % interval [96.007, 96.807], limit 90 %"),
        (AtLeast, "tasks.pocket_facts.accuracy", {"limit": 0.9, "of": "reference"}, "98.5 % of the reference, "),
        (
            AtMost,
            "divergence.kl_mean",
            {"limit": 0.02},
            "0.0010458 nats/token, 95 % interval [0.00098307, 0.0011086], limit 0.02",
        ),
    ],
)
def test_a_line_has_percent_signs_and_limits_after_another_gate_too(
    kind: type[AtLeast] | type[AtMost], metric: str, settings: dict[str, object], wanted: str
) -> None:
    rule = kind.model_validate({"metric": metric, "why": "w", **settings})
    gate = GateSpec(name="g", source="g.yaml", rules=(RuleSpec(rule=rule, where="g.yaml:1"),))
    run = rejudge(make_run("pass", documents=200).run, [gate])
    (item,) = [item for item in prepare_verdicts(run) if item.verdict.where == "g.yaml:1"]
    assert item.line.startswith(wanted)
