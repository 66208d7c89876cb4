"""The verdicts of the report: a reason is shown without the number and the limit beside it, and otherwise whole."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.judge import judge, rejudge
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Run, Stop, Verdict
from harness.report.rules import fold_passed, list_open, prepare_verdicts
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


def two_on_one_line() -> tuple[list[Verdict], Run]:
    """Two rules of one kind on one metric, written on one line of a gate file."""
    run = make_run("pass").run
    (measurement,) = [m for m in run.measurements if m.name == "divergence.kl_mean"]
    rules = [AtMost.model_validate({"metric": measurement.name, "why": why, "limit": limit}) for why, limit in LIMITS]
    gate = GateSpec(name="g", source="g.yaml", rules=tuple(RuleSpec(rule=rule, where="g.yaml:1") for rule in rules))
    asked = {"gates": [gate.model_dump(mode="json")]}
    verdicts = judge([gate], [measurement], [], identical=False)
    return list(verdicts), run.model_copy(update={"asked": asked, "verdicts": tuple(verdicts)})


LIMITS = (("strict", 50.0), ("loose", 100.0))


def test_rules_on_one_line_show_each_its_own_limit() -> None:
    _, run = two_on_one_line()
    shown = {item.verdict.why: item.compared for item in prepare_verdicts(run)}
    limits = {why: compared.bound.upper for why, compared in shown.items() if compared is not None}
    assert limits == dict(LIMITS)


def test_a_rule_that_cannot_be_told_from_its_neighbour_shows_no_limit_rather_than_another_s() -> None:
    verdicts, run = two_on_one_line()
    unclear = verdicts[0].model_copy(update={"why": "somebody else's"})
    (shown,) = prepare_verdicts(run.model_copy(update={"verdicts": (unclear,)}))
    assert shown.compared is None


def test_passed_rules_are_folded_by_gate_and_task() -> None:
    judged = prepare_verdicts(make_run("pass").run)
    (gate,) = fold_passed(judged, 100)
    assert (gate.name, gate.total) == ("ship", len(judged) - len(list_open(judged)))
    assert [task for task, _ in gate.tasks] == ["pocket_facts", "pocket_recall_far"]
    assert all(not item.task for item in gate.rules)
    assert sum(each.total for each in fold_passed(judged, 2)) == 2


def test_an_undecided_rule_says_what_would_decide_it() -> None:
    run = make_run("inconclusive").run
    needs = {item.verdict.metric: (item.n, item.need, item.remedy[1]) for item in prepare_verdicts(run) if item.need}
    assert set(needs) == {verdict.metric for verdict in run.verdicts if verdict.status == "inconclusive"}
    n, need, command = needs["tasks.pocket_recall_far.exact_match"]
    assert n == "200 items"
    assert "more items" in need
    assert command == "harness check variant.yaml"


def test_a_rule_that_a_failure_left_open_says_so() -> None:
    run = make_run("inconclusive").run
    metric = "tasks.pocket_recall_far.exact_match"
    (kind,) = (verdict.rule for verdict in run.verdicts if verdict.metric == metric)
    cut = Stop(
        suite="core", task="pocket_recall_far", looks=(200, 400), documents=200, watched=(f"{kind} {metric}",),
        undecided=(f"{kind} {metric}",), failed=("not_worse perplexity.ratio",),
    )  # fmt: skip
    items = prepare_verdicts(run.model_copy(update={"stops": (cut,)}))
    (remedy,) = (item.remedy[0] for item in items if item.verdict.metric == metric)
    assert "because not_worse perplexity.ratio had failed" in remedy


@pytest.mark.parametrize(
    ("kind", "metric", "settings", "wanted"),
    [
        (AtLeast, "divergence.top1_agreement", {"limit": 0.9}, "96.4 %, 95 % interval [96.0, 96.8], limit 90 %"),
        (AtLeast, "tasks.pocket_facts.accuracy", {"limit": 0.9, "of": "reference"}, "98.5 % of the reference, "),
        (
            AtMost,
            "divergence.kl_mean",
            {"limit": 0.02},
            "0.00105 nats/token, 95 % interval [0.000983, 0.00111], limit 0.02",
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


@given(st.floats(0.001, 0.999))
def test_numbers_that_differ_in_their_last_bit_never_read_alike(limit: float) -> None:
    value = math.nextafter(limit, 0.0)
    rule = AtLeast.model_validate({"metric": "divergence.top1_agreement", "limit": limit, "why": "w"})
    run = make_run("pass").run
    (found,) = [m for m in run.measurements if m.name == "divergence.top1_agreement"]
    number = {"change": value, "low": value, "high": value}
    run = run.model_copy(update={"measurements": (found.model_copy(update=number),)})
    run = rejudge(run, [GateSpec(name="g", source="g.yaml", rules=(RuleSpec(rule=rule, where="g.yaml:1"),))])
    (item,) = [item for item in prepare_verdicts(run) if item.verdict.where == "g.yaml:1"]
    shown, limits = item.numbers.split(", limit ")
    assert shown != limits
