"""Every kind of finding, on gates that have the fault and on gates that have not."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from harness.forecast.causes import Cause
from harness.forecast.linting.evidence import Evidence, gather_for_plan, gather_for_suites
from harness.forecast.linting.findings import Finding, exit_code
from harness.forecast.linting.lint import lint
from harness.forecast.measured import Measured
from harness.forecast.needs import needs
from harness.forecast.notes import findings_of
from harness.measures import load_metrics
from harness.plan import load_gate, load_suite, make_plan
from harness.planning.specs import Plan
from harness.records import Measurement, Metric, NoiseFloor, Run
from harness.tables.store import Store
from tests.helpers.made_run import make_run

HERE = Path(__file__).parent
POCKET = HERE.parents[1] / "planning" / "pocket.yaml"


@cache
def plan() -> Plan:
    return make_plan(POCKET)


@cache
def core() -> Evidence:
    return gather_for_plan(plan())


def limited(folder: Path, items: int) -> Evidence:
    """A suite with four tasks of a fixed number of items."""
    tasks = "[pocket_facts, pocket_two_hop, pocket_crowd, pocket_requests]"
    (folder / "suite.yaml").write_text(f"measures:\n  - {{measure: tasks, limit: {items}, tasks: {tasks}}}\n")
    return gather_for_suites([load_suite("./suite.yaml", folder)], None)


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
        basis="sampled",
        method="Tango score",
    )


# What is wrong whatever will be measured


def test_a_gate_of_warnings_is_an_error(tmp_path: Path) -> None:
    found = one(tmp_path, "rule: at_most, metric: divergence.kl_mean, limit: 0.05, level: warn", core())
    assert (found.severity, found.where, found.key) == ("error", str(tmp_path / "gate.yaml"), "rules")
    assert "none of the 1 rules" in found.what


@pytest.mark.parametrize("evidence", [core, lambda: gather_for_suites([])])
def test_a_metric_that_nothing_measures_is_an_error_with_the_nearest_name(tmp_path: Path, evidence: object) -> None:
    assert callable(evidence)
    found = one(tmp_path, "rule: not_worse, metric: perplexity.ratoi, margin: 0.02", evidence())
    assert (found.severity, found.key) == ("error", "rules[0].metric")
    assert found.where.endswith("gate.yaml:2")
    assert "perplexity.ratio" in found.do


def test_a_metric_of_a_measure_that_the_suite_lacks_says_so(tmp_path: Path) -> None:
    smoke = gather_for_suites([load_suite("smoke", Path())])
    found = one(tmp_path, "rule: at_most, metric: latency.ratio, limit: 1.1", smoke)
    assert "no suite of the plan" in found.what
    assert "add the measure" in found.do


def test_every_metric_there_is_may_be_named(tmp_path: Path) -> None:
    names = [metric.name for metric in load_metrics()]
    assert {"perplexity.ratio", "latency.ratio", "tasks.*.*"} <= set(names)
    rule = '  - {rule: at_least, metric: "tasks.x.accuracy", limit: 0.5, why: w}'
    assert findings(tmp_path, rule, gather_for_suites([])) == []


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
    assert "every possible value passes" in found.what


# Limits that nothing keeps


def test_a_margin_that_not_even_no_change_keeps_is_an_error(tmp_path: Path) -> None:
    found = one(
        tmp_path, "rule: not_worse, metric: tasks.pocket_two_hop.accuracy, margin: 0.01", limited(tmp_path, 300)
    )
    assert (found.severity, found.key) == ("error", "rules[0].margin")
    assert "even without any change" in found.what
    assert "300 items" in found.what


def test_min_documents_beyond_the_suite_are_an_error_that_names_the_key(tmp_path: Path) -> None:
    rule = "rule: not_worse, metric: perplexity.ratio, margin: 0.02, min_documents: 400"
    found = one(tmp_path, rule, core())
    assert (found.severity, found.key) == ("error", "rules[0].min_documents")
    assert "measure 400 documents" in found.do


NAMED = Metric(name="interval.min_documents", unit="nats", better="lower")
"""Its name has words in it from which no key may be chosen."""


@pytest.mark.parametrize(
    ("metric", "rule", "cause", "key", "do"),
    [
        (NAMED, "not_worse, margin: 0.1", Cause.NO_INTERVAL, "metric", "write decide: point"),
        (NAMED, "at_least, limit: 0.9", Cause.MISFIT, "limit", "another metric"),
        (NAMED.model_copy(update={"better": "neither"}), "not_worse, margin: 0.1", Cause.MISFIT, "margin", "another"),
    ],
)
def test_key_and_remedy_follow_from_the_cause(
    tmp_path: Path, metric: Metric, rule: str, cause: Cause, key: str, do: str
) -> None:
    found = scored(0.5).model_copy(
        update={"name": metric.name, "unit": "nats", "better": metric.better, "low": None, "high": None}
    )
    evidence = Evidence([Measured(metric, "s", 50)], True, run_with(found))
    (tmp_path / "gate.yaml").write_text(f"rules:\n  - {{rule: {rule}, metric: interval.min_documents, why: w}}\n")
    gate = load_gate("./gate.yaml", tmp_path)
    (need,) = needs([gate], evidence.metrics, evidence.run)
    assert need.cause is cause
    finding = next(each for each in lint(gate, evidence) if "never" in each.why)
    assert (finding.key, do in finding.do) == (f"rules[0].{key}", True)


def test_what_can_never_pass_is_only_a_warning_where_the_rule_only_warns(tmp_path: Path) -> None:
    rules = (
        "  - {rule: not_worse, metric: perplexity.ratio, margin: 0.02, why: w}\n"
        "  - {rule: at_most, metric: divergence.kl_mean, limit: 0.0, level: warn, why: w}"
    )
    (found,) = findings(tmp_path, rules, core())
    assert (found.severity, found.where[-2:]) == ("warning", ":3")


def test_too_few_documents_are_a_warning_with_both_remedies(tmp_path: Path) -> None:
    found = one(
        tmp_path, "rule: not_worse, metric: tasks.pocket_two_hop.accuracy, margin: 0.03", limited(tmp_path, 300)
    )
    assert (found.severity, found.key) == ("warning", "rules[0].margin")
    assert "assumed" in found.why
    assert found.do == "measure 512 items or allow a change of 0.0409"


def test_one_finding_stands_for_all_tasks_of_a_rule(tmp_path: Path) -> None:
    found = one(tmp_path, 'rule: not_worse, metric: "tasks.*.accuracy", margin: 0.03', limited(tmp_path, 300))
    assert "(and 3 more)" in found.what


def test_a_limit_within_rounding_is_a_warning(tmp_path: Path) -> None:
    rule = "rule: at_most, metric: logits.max_abs_diff, limit: {}, decide: point"
    assert "rounding to float32" in one(tmp_path, rule.format("1.0e-6"), core()).why
    assert findings(tmp_path, f"  - {{{rule.format('1.0e-4')}, why: w}}", core()) == []


def test_a_limit_within_what_timing_the_reference_twice_gives_is_a_warning(tmp_path: Path) -> None:
    timed = Measurement(
        name="latency.ratio",
        unit="ratio",
        better="lower",
        neutral=1.0,
        change=0.98,
        low=0.97,
        high=0.99,
        n=40,
        clusters=20,
        basis="sampled",
        method="median",
        floor=NoiseFloor(value=0.07, condition="timing the reference against itself", documents=20),
    )
    evidence = gather_for_suites([], run_with(timed))
    rule = "  - {{rule: at_most, metric: latency.ratio, limit: {}, why: w}}"
    (found,) = findings(tmp_path, rule.format(1.05), evidence)
    assert "timing the reference against itself changes it by 0.07" in found.why
    assert findings(tmp_path, rule.format(1.1), evidence) == []


def diverged(floor: float | None, name: str = "divergence.kl_mean", **labels: str) -> Measurement:
    noise = None if floor is None else NoiseFloor(value=floor, condition="rounding", documents=16)
    return Measurement(
        name=name, labels=labels, unit="nats/token", better="lower", change=0.02, low=0.015, high=0.025, n=9000,
        clusters=200, basis="sampled", method="mean over tokens", floor=noise,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "above", "words"),
    [
        ("1.0e-4", "", "within the noise floor"),
        ("1.0e-3", "", "within the noise floor"),
        ("1.1e-3", "", ""),
        ("0.05", "", ""),
        ("1.1e-3", ", above_noise: 3", "the effective limit is looser: nothing fails below 0.003"),
        ("5.0e-4", ", above_noise: 3", "within the noise floor"),
        ("0.05", ", above_noise: 3", ""),
    ],
)
def test_limits_are_held_against_the_noise_floor_of_a_run(tmp_path: Path, limit: str, above: str, words: str) -> None:
    evidence = gather_for_suites([], run_with(diverged(0.0004, suite="a"), diverged(0.001, suite="b")))
    rule = f"  - {{rule: at_most, metric: divergence.kl_mean, limit: {limit}{above}, why: w}}"
    found = [each for each in findings(tmp_path, rule, evidence) if "noise" in each.what or "fails below" in each.what]
    assert len(found) == bool(words)
    assert all(words in each.what and each.key == "rules[0].limit" for each in found)
    assert all("rounding changes it by 0.001" in each.why for each in found)


def test_an_exact_zero_floor_bounds_nothing(tmp_path: Path) -> None:
    evidence = gather_for_suites([], run_with(diverged(0.0)))
    rule = "  - {rule: at_most, metric: divergence.kl_mean, limit: 0.1, above_noise: 3, why: w}"
    assert findings(tmp_path, rule, evidence) == []


def test_above_noise_without_a_floor_is_an_error(tmp_path: Path) -> None:
    rule = "rule: at_most, metric: divergence.kl_mean, limit: 0.1, above_noise: 3"
    for evidence in (gather_for_suites([], run_with(diverged(None))), gather_for_suites([load_suite("smoke", Path())])):
        found = one(tmp_path, rule, evidence)
        assert (found.severity, found.key) == ("error", "rules[0].above_noise")
        assert "noise_floor: [batch_size" in found.do
    assert findings(tmp_path, f"  - {{{rule}, why: w}}", gather_for_suites([])) == [], (
        "nothing is known, so nothing is wrong"
    )


# Slices that no run will have


def labelled(tmp_path: Path, text: str, packed: bool = False) -> Evidence:
    (tmp_path / "texts.jsonl").write_text(text, encoding="utf-8")
    more = ", packed: true, context: 64" if packed else ""
    (tmp_path / "s.yaml").write_text(f"documents: {{data: texts.jsonl{more}}}\nmeasures: [divergence, memory]\n")
    return gather_for_suites([load_suite("./s.yaml", tmp_path)])


def sliced(tmp_path: Path, slices: str, evidence: Evidence, metric: str = "divergence.kl_mean") -> list[Finding]:
    rule = f"  - {{rule: at_most, metric: {metric}, limit: 0.1, slices: {slices}, why: w}}"
    return [each for each in findings(tmp_path, rule, evidence) if each.key.endswith("slices")]


PLAIN = '{"text": "one"}\n{"text": "two"}\n'
KINDS = '{"text": "one", "kind": "sum"}\n\n{"text": "two", "language": "de"}\n'


@pytest.mark.parametrize(
    ("text", "slices", "words"),
    [
        (PLAIN, "kind", "no document of s has"),
        (PLAIN, "language", "no document of s has"),
        (PLAIN, "length", ""),
        (KINDS, "kind", ""),
        (KINDS, "kind=su*", ""),
        (KINDS, "kind=unlabelled", ""),
        (KINDS, "kind=prose", "have kind sum, unlabelled"),
        (KINDS, "language=de", ""),
        (KINDS, "language=fr", "have language de, unlabelled"),
    ],
)
def test_slices_that_no_document_is_in_are_errors(tmp_path: Path, text: str, slices: str, words: str) -> None:
    found = sliced(tmp_path, slices, labelled(tmp_path, text))
    assert len(found) == bool(words)
    assert all(each.severity == "error" and words in each.what for each in found)


def test_labels_of_shipped_and_of_packed_documents_are_known(tmp_path: Path) -> None:
    smoke = gather_for_suites([load_suite("smoke", Path())])
    assert sliced(tmp_path, "kind", smoke) == []
    assert "slice by length" in sliced(tmp_path, "language", smoke)[0].do
    (found,) = sliced(tmp_path, "kind=sum", labelled(tmp_path, KINDS, packed=True))
    assert "have kind packed" in found.what


def test_labels_that_only_the_run_will_tell_are_no_finding(tmp_path: Path) -> None:
    assert sliced(tmp_path, "kind", gather_for_suites([load_suite("standard", Path())])) == []
    assert sliced(tmp_path, "kind", gather_for_suites([])) == []
    evidence = labelled(tmp_path, KINDS)
    (tmp_path / "texts.jsonl").write_text("no JSON at all\n")
    assert sliced(tmp_path, "kind", evidence) == []


@pytest.mark.parametrize("metric", ["memory.bits_per_weight", "outliers.channels", "tasks.pocket_facts.accuracy"])
def test_slices_of_metrics_that_are_not_by_document_are_errors(tmp_path: Path, metric: str) -> None:
    for evidence in (gather_for_suites([]), core()):
        (found,) = sliced(tmp_path, "length", evidence, metric)
        assert "measured over all documents at once" in found.what


@pytest.mark.parametrize("metric", ["divergence.kl_mean", "layers.worst", "perplexity.ratio"])
def test_slices_by_token_or_layer_are_fine(tmp_path: Path, metric: str) -> None:
    for evidence in (gather_for_suites([]), core()):
        assert sliced(tmp_path, "kind", evidence, metric) == []


# What a run shows


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (1.0, "saturated"),
        (0.99, "saturated"),
        (0.98, ""),
        (0.0, "almost nothing"),
        (0.3, "within noise of guessing"),
        (0.35, ""),
    ],
)
def test_tasks_without_room_are_warnings(tmp_path: Path, score: float, words: str) -> None:
    run = run_with(scored(score))
    evidence = Evidence(gather_for_suites([], run).metrics, True, run, None, {"pocket_two_hop": 0.25})
    found = findings(tmp_path, '  - {rule: not_worse, metric: "tasks.*.accuracy", margin: 0.1, why: w}', evidence)
    whys = [each.why for each in found if "reference scores" in each.what]
    assert len(whys) == bool(words)
    assert all(words in why for why in whys)


def test_both_sides_the_same_is_a_warning(tmp_path: Path) -> None:
    text = POCKET.read_text().replace("{backend: round_to_nearest, bits: 4, group_size: 32}", "")
    (tmp_path / "same.yaml").write_text(text)
    same = gather_for_plan(make_plan(tmp_path / "same.yaml"))
    found = one(tmp_path, "rule: not_worse, metric: perplexity.ratio, margin: 0.02", same)
    assert (found.severity, "the variant is the reference" in found.what) == ("warning", True)
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "again").symlink_to(folder)
    entry = "reference: {model: ./model}\nvariant: {model: ./again}\n"
    (tmp_path / "linked.yaml").write_text(f"name: linked\n{entry}suites: [smoke]\ngates: [smoke]\n")
    assert "the variant is the reference" in gather_for_plan(make_plan(tmp_path / "linked.yaml")).self_reference
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    (tmp_path / "adapter/adapter_model.safetensors").touch()
    adapted = entry.replace("./again}", "./again, adapter: ./adapter}")
    (tmp_path / "adapted.yaml").write_text(f"name: adapted\n{adapted}suites: [smoke]\ngates: [smoke]\n")
    assert gather_for_plan(make_plan(tmp_path / "adapted.yaml")).self_reference == ""
    run = made().model_copy(update={"variant": made().reference})
    found = one(tmp_path, "rule: not_worse, metric: perplexity.ratio, margin: 0.02", gather_for_suites([], run))
    assert "both sides were the same bytes" in found.what


def test_a_run_alone_says_what_is_measured(tmp_path: Path) -> None:
    found = findings(
        tmp_path, "  - {rule: at_most, metric: latency.nothing, limit: 1, why: w}", gather_for_suites([], made())
    )
    assert [each.key for each in found] == ["rules[0].metric"]


# Shipped gates


@pytest.mark.parametrize(
    ("gate", "suite"),
    [("ship", "core"), ("strict", "core"), ("smoke", "smoke"), ("ship", "standard"), ("student", "student")],
)
def test_shipped_gates_have_no_error_on_their_suites(gate: str, suite: str) -> None:
    found = lint(load_gate(gate, Path()), gather_for_suites([load_suite(suite, Path())]))
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
    assert gather_for_suites([], made(), tmp_path).chance == {"a": pytest.approx((1 / 2 + 1 / 4) / 2), "b": 0.0}
    assert gather_for_suites([], made(), tmp_path / "run.json").chance == gather_for_suites([], made(), tmp_path).chance
    assert gather_for_suites([], made(), tmp_path / "nowhere").chance == {}


def test_in_a_plan_a_gate_of_warnings_may_stand_beside_one_that_blocks(tmp_path: Path) -> None:
    (tmp_path / "soft.yaml").write_text(
        "rules:\n  - {rule: at_most, metric: divergence.kl_mean, limit: 0.1, level: warn, why: w}\n"
    )
    (tmp_path / "both.yaml").write_text(POCKET.read_text().replace("[ship]", "[ship, ./soft.yaml]"))
    both = make_plan(tmp_path / "both.yaml")
    assert [each.key for each in lint(both.gates[1], gather_for_plan(both))] == ["rules"]
    assert findings_of(both, gather_for_plan(both), needed=False) == []
