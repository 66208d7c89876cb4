"""Every kind of finding, on gates that have the fault and on gates that have not."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from harness.linting.evidence import Evidence, every_metric, of_plan, of_suites
from harness.linting.findings import Finding, exit_code
from harness.linting.lint import lint
from harness.plan import load_gate, load_suite, make_plan
from harness.preview import findings_of
from harness.records import Measurement, Plan, Run
from harness.tables.store import Store
from tests.writers.made_run import make_run

HERE = Path(__file__).parent
POCKET = HERE.parent / "planning" / "pocket.yaml"


@cache
def plan() -> Plan:
    return make_plan(POCKET)


@cache
def core() -> Evidence:
    return of_plan(plan())


@cache
def made() -> Run:
    return make_run().run


def run_with(*measurements: Measurement) -> Run:
    return made().model_copy(update={"measurements": measurements})


def findings(tmp_path: Path, rules: str, evidence: Evidence) -> list[Finding]:
    path = tmp_path / "gate.yaml"
    path.write_text(f"rules:\n{rules}\n")
    return lint(load_gate(str(path), Path("/")), evidence)


def one(tmp_path: Path, rule: str, evidence: Evidence) -> Finding:
    found = findings(tmp_path, f"  - {{{rule}, why: w}}", evidence)
    assert len(found) == 1, found
    return found[0]


def scored(score: float, items: int = 200, task: str = "pocket_two_hop") -> Measurement:
    return Measurement(
        name=f"tasks.{task}.accuracy",
        unit="share",
        better="higher",
        reference=score,
        variant=score,
        change=0.0,
        low=-0.02,
        high=0.02,
        variant_low=max(score - 0.05, 0.0),
        variant_high=min(score + 0.05, 1.0),
        n=items,
        clusters=items,
        method="Tango score",
    )


# What is wrong whatever will be measured


def test_a_gate_of_warnings_is_an_error(tmp_path: Path) -> None:
    found = one(tmp_path, "rule: at_most, metric: divergence.kl_mean, limit: 0.05, level: warn", core())
    assert (found.severity, found.where, found.key) == ("error", str(tmp_path / "gate.yaml"), "rules")
    assert "none of the 1 rules" in found.what


@pytest.mark.parametrize("evidence", [core, lambda: of_suites([])])
def test_a_metric_that_nothing_measures_is_an_error_with_the_nearest_name(tmp_path: Path, evidence: object) -> None:
    assert callable(evidence)
    found = one(tmp_path, "rule: not_worse, metric: perplexity.ratoi, margin: 0.02", evidence())
    assert (found.severity, found.key) == ("error", "rules[0].metric")
    assert found.where.endswith("gate.yaml:2")
    assert "perplexity.ratio" in found.do


def test_a_metric_of_a_measure_that_the_suite_lacks_says_so(tmp_path: Path) -> None:
    smoke = of_suites([load_suite("smoke", Path())])
    found = one(tmp_path, "rule: at_most, metric: latency.ratio, limit: 1.1", smoke)
    assert "no suite of the plan" in found.what
    assert "add the measure" in found.do


def test_every_metric_there_is_may_be_named(tmp_path: Path) -> None:
    names = [metric.name for metric in every_metric()]
    assert {"perplexity.ratio", "latency.ratio", "tasks.*"} <= set(names)
    rule = '  - {rule: at_least, metric: "tasks.x.accuracy", limit: 0.5, why: w}'
    assert findings(tmp_path, rule, of_suites([])) == []


# Limits that nothing breaks


@pytest.mark.parametrize(
    ("loose", "tight"),
    [
        ("at_most, metric: perplexity.ratio, limit: 1536.5", "at_most, metric: perplexity.ratio, limit: 1535.5"),
        ("at_most, metric: divergence.kl_mean, limit: 7.4", "at_most, metric: divergence.kl_mean, limit: 7.2"),
        ("at_least, metric: divergence.top1_agreement, limit: 0.0006", None),
        ("at_most, metric: perplexity.nll_delta, limit: 7.4", "at_most, metric: perplexity.nll_delta, limit: 7.2"),
    ],
)
def test_a_limit_that_a_uniform_guess_keeps_is_an_error(tmp_path: Path, loose: str, tight: str | None) -> None:
    found = one(tmp_path, f"rule: {loose}", core())
    assert (found.severity, found.key) == ("error", "rules[0].limit")
    assert "looser than chance" in found.what
    assert "1536 tokens" in found.why
    if tight:
        assert findings(tmp_path, f"  - {{rule: {tight}, why: w}}", core()) == []


def test_a_margin_that_reaches_down_to_guessing_is_an_error(tmp_path: Path) -> None:
    metrics, chance = core().metrics, {"pocket_two_hop": 0.25}
    rule = "rule: not_worse, metric: tasks.pocket_two_hop.accuracy, margin: {}"
    evidence = Evidence(metrics, True, run_with(scored(0.6)), None, chance)
    found = one(tmp_path, rule.format(0.36), evidence)
    assert ("looser than chance" in found.what, "0.24 passes" in found.why) == (True, True)
    assert findings(tmp_path, f"  - {{{rule.format(0.34)}, why: w}}", evidence) == []


def test_a_score_below_guessing_is_an_error_without_a_run(tmp_path: Path) -> None:
    evidence = Evidence(core().metrics, True, None, None, {"pocket_two_hop": 0.25})
    rule = "rule: at_least, metric: tasks.pocket_two_hop.accuracy, limit: {}"
    assert "guessing scores 0.25" in one(tmp_path, rule.format(0.2), evidence).why
    assert findings(tmp_path, f"  - {{{rule.format(0.3)}, why: w}}", evidence) == []


def test_flips_that_guessing_keeps_are_an_error(tmp_path: Path) -> None:
    evidence = Evidence(core().metrics, True, None, None, {"pocket_two_hop": 0.25})
    found = one(tmp_path, "rule: at_most, metric: tasks.pocket_two_hop.flips, limit: 0.8", evidence)
    assert "changes about 0.75" in found.why


def test_a_limit_that_every_number_keeps_is_an_error(tmp_path: Path) -> None:
    found = one(tmp_path, "rule: at_least, metric: calibration.gap, limit: -5.0", core())
    assert "every number that there can be passes" in found.what


# Limits that nothing keeps


def test_a_margin_that_not_even_no_change_keeps_is_an_error(tmp_path: Path) -> None:
    found = one(tmp_path, "rule: not_worse, metric: tasks.pocket_two_hop.accuracy, margin: 0.01", core())
    assert (found.severity, found.key) == ("error", "rules[0].margin")
    assert "not even without any change" in found.what
    assert "300 items" in found.what


def test_min_documents_beyond_the_suite_are_an_error_that_names_the_key(tmp_path: Path) -> None:
    rule = "rule: not_worse, metric: perplexity.ratio, margin: 0.02, min_documents: 400"
    found = one(tmp_path, rule, core())
    assert (found.severity, found.key) == ("error", "rules[0].min_documents")
    assert "measure 400 documents" in found.do


def test_what_can_never_pass_is_only_a_warning_where_the_rule_only_warns(tmp_path: Path) -> None:
    rules = (
        "  - {rule: not_worse, metric: perplexity.ratio, margin: 0.02, why: w}\n"
        "  - {rule: at_most, metric: divergence.kl_mean, limit: 0.0, level: warn, why: w}"
    )
    (found,) = findings(tmp_path, rules, core())
    assert (found.severity, found.where[-2:]) == ("warning", ":3")


def test_too_few_documents_are_a_warning_with_both_remedies(tmp_path: Path) -> None:
    found = one(tmp_path, "rule: not_worse, metric: tasks.pocket_two_hop.accuracy, margin: 0.03", core())
    assert (found.severity, found.key) == ("warning", "rules[0].margin")
    assert "assumed" in found.why
    assert found.do == "measure 512 items or allow a change of 0.0409"


def test_one_finding_stands_for_all_tasks_of_a_rule(tmp_path: Path) -> None:
    found = one(tmp_path, 'rule: not_worse, metric: "tasks.*.accuracy", margin: 0.03', core())
    assert "(and 3 more)" in found.what


def test_a_limit_within_rounding_is_a_warning(tmp_path: Path) -> None:
    rule = "rule: at_most, metric: logits.max_abs_diff, limit: {}, decide: point"
    assert "rounding to float32" in one(tmp_path, rule.format("1.0e-6"), core()).why
    assert findings(tmp_path, f"  - {{{rule.format('1.0e-4')}, why: w}}", core()) == []


def test_a_limit_within_what_timing_the_reference_twice_gives_is_a_warning(tmp_path: Path) -> None:
    floor = Measurement(
        name="latency.floor",
        unit="ratio",
        better="lower",
        neutral=1.0,
        change=0.98,
        low=0.93,
        high=1.04,
        n=40,
        clusters=20,
        method="median",
        not_judged="the floor",
    )
    timed = floor.model_copy(update={"name": "latency.ratio", "low": 0.97, "high": 0.99, "not_judged": ""})
    evidence = of_suites([], run_with(floor, timed))
    rule = "  - {{rule: at_most, metric: latency.ratio, limit: {}, why: w}}"
    (found,) = findings(tmp_path, rule.format(1.05), evidence)
    assert "timing the reference against itself moves it by 0.07" in found.why
    assert findings(tmp_path, rule.format(1.1), evidence) == []


# What a run shows


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (1.0, "saturated"),
        (0.99, "saturated"),
        (0.98, ""),
        (0.0, "next to nothing"),
        (0.3, "within noise of guessing"),
        (0.35, ""),
    ],
)
def test_tasks_without_room_are_warnings(tmp_path: Path, score: float, words: str) -> None:
    run = run_with(scored(score))
    evidence = Evidence(of_suites([], run).metrics, True, run, None, {"pocket_two_hop": 0.25})
    found = findings(tmp_path, '  - {rule: not_worse, metric: "tasks.*.accuracy", margin: 0.1, why: w}', evidence)
    whys = [each.why for each in found if "reference scores" in each.what]
    assert len(whys) == bool(words)
    assert all(words in why for why in whys)


def test_both_sides_the_same_is_a_warning(tmp_path: Path) -> None:
    text = POCKET.read_text().replace("{backend: round_to_nearest, bits: 4, group_size: 32}", "")
    (tmp_path / "same.yaml").write_text(text)
    same = of_plan(make_plan(tmp_path / "same.yaml"))
    found = one(tmp_path, "rule: not_worse, metric: perplexity.ratio, margin: 0.02", same)
    assert (found.severity, "the variant is the reference" in found.what) == ("warning", True)
    run = made().model_copy(update={"variant": made().reference})
    found = one(tmp_path, "rule: not_worse, metric: perplexity.ratio, margin: 0.02", of_suites([], run))
    assert "both sides were the same bytes" in found.what


def test_a_run_alone_says_what_is_measured(tmp_path: Path) -> None:
    found = findings(tmp_path, "  - {rule: at_most, metric: latency.nothing, limit: 1, why: w}", of_suites([], made()))
    assert [each.key for each in found] == ["rules[0].metric"]


# Shipped gates


@pytest.mark.parametrize(
    ("gate", "suite"),
    [("ship", "core"), ("strict", "core"), ("smoke", "smoke"), ("ship", "standard"), ("student", "student")],
)
def test_shipped_gates_have_no_error_on_their_suites(gate: str, suite: str) -> None:
    found = lint(load_gate(gate, Path()), of_suites([load_suite(suite, Path())]))
    assert [str(each) for each in found if each.severity == "error"] == []
    assert exit_code(found) == 0


def test_errors_exit_with_2_and_warnings_do_not() -> None:
    error, warning = (Finding(each, "a:1", "", "", "", "") for each in ("error", "warning"))
    assert [exit_code(found) for found in ([], [warning], [warning, error])] == [0, 0, 2]


def test_the_choices_of_a_task_are_read_from_the_tables_of_a_run(tmp_path: Path) -> None:
    rows = {
        "task": ["a", "a", "b"],
        "output_type": ["multiple_choice", "multiple_choice", "generate_until"],
        "reference_loglikelihoods": [[-1.0, -2.0], [-1.0, -2.0, -3.0, -4.0], []],
    }
    with Store(tmp_path / "tables", made().data_key) as store:
        store.commit("core", "unit", {"items": pd.DataFrame(rows)}, {})
    assert of_suites([], made(), tmp_path).chance == {"a": pytest.approx((1 / 2 + 1 / 4) / 2), "b": 0.0}
    assert of_suites([], made(), tmp_path / "run.json").chance == of_suites([], made(), tmp_path).chance
    assert of_suites([], made(), tmp_path / "nowhere").chance == {}


def test_in_a_plan_a_gate_of_warnings_may_stand_beside_one_that_blocks(tmp_path: Path) -> None:
    (tmp_path / "soft.yaml").write_text(
        "rules:\n  - {rule: at_most, metric: divergence.kl_mean, limit: 0.1, level: warn, why: w}\n"
    )
    (tmp_path / "both.yaml").write_text(POCKET.read_text().replace("[ship]", "[ship, ./soft.yaml]"))
    both = make_plan(tmp_path / "both.yaml")
    assert [each.key for each in lint(both.gates[1], of_plan(both))] == ["rules"]
    assert findings_of(both, of_plan(both), needed=False) == []
