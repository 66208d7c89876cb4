"""A rule is not applied only where the gate allows it, a suite says so, and nothing measures it all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import PlanError
from harness.forecast.linting.evidence import gather_for_plan, gather_for_suites
from harness.forecast.linting.lint import lint
from harness.judge import judge, rejudge
from harness.plan import load_gate, load_suite, make_plan, notes_on_plan, resolve_plan
from harness.planning.specs import Plan
from harness.records import Note
from tests.helpers.made_run import make_run

VARIANT = "name: v\nreference: {model: pocket}\nsuites: [./suite.yaml]\ngates: [./gate.yaml]\n"
VARIANT += "variant: {compress: [{backend: round_to_nearest, bits: 8, group_size: 32}]}\n"
SUITE = "documents: {data: pocket-heldout, max: 80}\nwithout: [tasks]\nmeasures: [perplexity]\n"
GATE = """\
optional: [tasks]
rules:
  - {rule: not_worse, metric: perplexity.ratio, margin: 0.02, why: readers notice two percent}
  - {rule: not_worse, metric: "tasks.*.accuracy", margin: 0.03, why: users notice three wrong answers}
  - {rule: at_most, metric: "tasks.*.flips_to_wrong", limit: 0.1, why: users notice flipped answers}
"""
TASK = "  - {measure: tasks, tasks: [pocket_sums]}\n"


def planned(folder: Path, suite: str = SUITE, gate: str = GATE, variant: str = VARIANT) -> Plan:
    for name, text in (("variant", variant), ("suite", suite), ("gate", gate)):
        (folder / f"{name}.yaml").write_text(text)
    return make_plan(folder / "variant.yaml")


def refusals(folder: Path, suite: str = SUITE, gate: str = GATE, variant: str = VARIANT) -> list[str]:
    with pytest.raises(PlanError) as caught:
        planned(folder, suite, gate, variant)
    return [str(problem) for problem in caught.value.problems]


def test_rules_about_what_the_suite_leaves_out_are_not_applied_and_that_is_said_once(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert [spec.left_out for spec in plan.gates[0].rules] == ["", "tasks", "tasks"]
    (note,) = notes_on_plan(plan)
    assert note.level == "warn"
    assert note.text == (
        "no tasks are gated here: the suite suite measures none (without: [tasks]), so 2 rules of the gate gate are "
        "not applied (tasks.*.accuracy, tasks.*.flips_to_wrong)"
    )
    asked = resolve_plan(plan)
    assert [rule.get("left_out", "") for rule in asked["gates"][0]["rules"]] == ["", "tasks", "tasks"]
    assert [verdict.metric for verdict in judge(plan.gates, [], [], identical=False)] == ["perplexity.ratio"]


def test_tasks_that_were_forgotten_stay_a_mistake(tmp_path: Path) -> None:
    found = refusals(tmp_path, suite=SUITE.replace("without: [tasks]\n", ""))
    assert [line.split(": ")[1] for line in found] == ["rules[1].metric", "rules[2].metric"]
    assert "add tasks to a suite, or write without: [tasks] in it to ship without them" in found[0]


def test_no_suite_excuses_a_rule_of_a_gate_that_does_not_allow_it(tmp_path: Path) -> None:
    found = refusals(tmp_path, gate=GATE.replace("optional: [tasks]\n", ""))
    assert len(found) == 2
    assert "expected a metric that the suites measure" in found[0]


def test_rules_are_applied_where_another_suite_measures_the_tasks(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(f"measures:\n{TASK}")
    plan = planned(tmp_path, variant=VARIANT.replace("[./suite.yaml]", "[./suite.yaml, ./more.yaml]"))
    assert not any(spec.left_out for spec in plan.gates[0].rules)
    assert notes_on_plan(plan) == ()


def test_a_gate_of_which_no_blocking_rule_is_left_is_refused(tmp_path: Path) -> None:
    gate = GATE.replace("margin: 0.02,", "margin: 0.02, level: warn,")
    (found,) = refusals(tmp_path, gate=gate)
    assert "expected at least one rule of level block" in found


@pytest.mark.parametrize(
    ("suite", "gate", "said"),
    [
        (SUITE.replace("[tasks]", "[task]"), GATE, "suite.yaml:2: without[0]: found 'task', expected one of"),
        (SUITE.replace("[tasks]", "[perplexity]"), GATE, "without[0]: found perplexity, which the suite measures"),
        (SUITE, GATE.replace("[tasks]", "tasks"), "gate.yaml:1: optional: found"),
        (SUITE, GATE.replace("[tasks]", "[tests]"), "optional[0]: found 'tests', expected one of"),
    ],
)
def test_mistakes_in_both_lists_have_a_line(tmp_path: Path, suite: str, gate: str, said: str) -> None:
    assert any(said in line for line in refusals(tmp_path, suite, gate))


def test_lint_does_not_miss_what_is_left_out_on_purpose(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert lint(plan.gates[0], gather_for_plan(plan)) == []
    gate = load_gate("./gate.yaml", tmp_path)
    assert lint(gate, gather_for_suites([load_suite("./suite.yaml", tmp_path)])) == []
    (tmp_path / "suite.yaml").write_text(SUITE.replace("without: [tasks]\n", ""))
    keys = [finding.key for finding in lint(gate, gather_for_suites([load_suite("./suite.yaml", tmp_path)]))]
    assert keys == ["rules[1].metric", "rules[2].metric"]


def test_judging_again_leaves_out_the_same_and_says_so(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    old = Note(topic="not gated", text="of another gate", level="warn")
    run = make_run().run.model_copy(update={"asked": resolve_plan(plan), "notes": (old,), "warnings": 1})
    without_tasks = tuple(m for m in run.measurements if not m.name.startswith("tasks."))
    tasks_measured = rejudge(run, [load_gate("./gate.yaml", tmp_path)])
    assert tasks_measured.notes == ()
    assert "tasks.pocket_facts.accuracy" in {verdict.metric for verdict in tasks_measured.verdicts}
    metrics = tuple(plan.suites[0].measures[0].produces())
    run = run.model_copy(update={"metrics": metrics, "measurements": without_tasks})
    judged = rejudge(run, [load_gate("./gate.yaml", tmp_path)])
    assert [note.text for note in judged.notes] == [note.text for note in notes_on_plan(plan)]
    assert judged.warnings == 1
    assert "tasks.*.accuracy" not in {verdict.metric for verdict in judged.verdicts}
    kept = rejudge(run.model_copy(update={"asked": {}}), [load_gate("./gate.yaml", tmp_path)])
    assert "tasks.*.accuracy" in {verdict.metric for verdict in kept.verdicts}
