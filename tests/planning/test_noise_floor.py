"""The key ``noise_floor`` of a suite, rules that ask to be above it, and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import PlanError, Problem
from harness.forecast.cost import amount
from harness.plan import load_suite, make_plan, resolve_plan
from harness.planning.specs import Plan
from harness.records import Condition, NoiseFloorSpec

SUITE = """
documents: {data: pocket-heldout, max: 40, context: 256}
measures: [divergence, perplexity, layer_error, memory, {measure: latency, repeats: 6}]
"""
GATE = "rules:\n  - {rule: at_most, metric: divergence.kl_mean, limit: 0.1, why: w}\n"
ALL: tuple[Condition, ...] = ("batch_size", "padding_side", "document_order", "attention", "rounding")


def plan(folder: Path, suite: str = "", rule: str = "") -> Plan:
    (folder / "s.yaml").write_text(SUITE + suite)
    (folder / "g.yaml").write_text(GATE + (f"  - {{{rule}, why: w}}\n" if rule else ""))
    models = "reference: {model: pocket}\nvariant: {}\n"
    (folder / "v.yaml").write_text(f"name: v\n{models}suites: [./s.yaml]\ngates: [./g.yaml]\n")
    return make_plan(folder / "v.yaml")


def problems(folder: Path, suite: str = "", rule: str = "") -> list[Problem]:
    with pytest.raises(PlanError) as raised:
        plan(folder, suite, rule)
    return list(raised.value.problems)


def test_a_list_of_conditions_takes_the_usual_number_of_documents(tmp_path: Path) -> None:
    made = plan(tmp_path, f"noise_floor: [{', '.join(ALL)}]\n")
    assert made.suites[0].noise_floor == NoiseFloorSpec(conditions=ALL, documents=16)
    assert resolve_plan(made)["suites"][0]["noise_floor"] == {"conditions": list(ALL), "documents": 16}
    assert plan(tmp_path).suites[0].noise_floor is None


def test_a_mapping_gives_the_number_of_documents(tmp_path: Path) -> None:
    made = plan(tmp_path, "noise_floor: {conditions: [rounding], documents: 4}\n")
    assert made.suites[0].noise_floor == NoiseFloorSpec(conditions=("rounding",), documents=4)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("[rounding, batchsize]", "noise_floor[1]", "did you mean batch_size?"),
        ("[rounding, rounding]", "noise_floor[1]", "each condition once"),
        ("[]", "noise_floor", "at least one"),
        ("rounding", "noise_floor", "a list of conditions"),
        ("{documents: 4}", "noise_floor.conditions", "a list of conditions"),
        ("{conditions: [rounding], documents: 0}", "noise_floor.documents", "greater than 0"),
        ("{conditions: [rounding], docs: 4}", "noise_floor.docs", "did you mean documents?"),
        ("{conditions: [7]}", "noise_floor.conditions[0]", "one of batch_size"),
    ],
)
def test_mistakes_are_named_by_line_and_key(tmp_path: Path, text: str, key: str, words: str) -> None:
    (found,) = problems(tmp_path, f"noise_floor: {text}\n")
    assert (found.file, found.line, found.key) == (str(tmp_path / "s.yaml"), 4, key)
    assert words in str(found)


def test_a_suite_that_reads_no_documents_has_no_floor(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("measures: [memory]\nnoise_floor: [rounding]\n")
    with pytest.raises(PlanError, match="no measure that it applies to"):
        load_suite("./s.yaml", tmp_path)


@pytest.mark.parametrize(
    ("rule", "remedy"),
    [
        ("rule: at_most, metric: divergence.kl_mean, limit: 0.1", "add noise_floor: [batch_size"),
        ('rule: at_most, metric: "layers.*_error", limit: 0.5', "add noise_floor: [batch_size"),
        ("rule: at_most, metric: memory.bits_per_weight, limit: 5", "the measure memory has no noise floor"),
    ],
)
def test_above_noise_without_a_floor_is_a_mistake_with_a_remedy(tmp_path: Path, rule: str, remedy: str) -> None:
    (found,) = problems(tmp_path, rule=f"{rule}, above_noise: 3")
    assert (found.file, found.line, found.key) == (str(tmp_path / "g.yaml"), 3, "rules[1].above_noise")
    assert remedy in str(found)
    plan(tmp_path, rule=rule)


def test_decibels_have_no_floor(tmp_path: Path) -> None:
    rule = "rule: at_least, metric: layers.sqnr_db, limit: 10, above_noise: 3"
    (found,) = problems(tmp_path, "noise_floor: [rounding]\n", rule)
    assert "layers.sqnr_db is infinite if both sides are equal" in str(found)


@pytest.mark.parametrize("metric", ["divergence.kl_mean", "perplexity.ratio", "layers.worst"])
def test_above_noise_is_met_by_a_suite_that_measures_it(tmp_path: Path, metric: str) -> None:
    rule = f"rule: not_worse, metric: {metric}, margin: 0.1, above_noise: 3"
    assert plan(tmp_path, "noise_floor: [rounding]\n", rule).gates[0].rules[1].rule.above_noise == 3


def test_the_ratio_of_times_brings_its_own_floor(tmp_path: Path) -> None:
    plan(tmp_path, rule="rule: at_most, metric: latency.ratio, limit: 1.2, above_noise: 3")


def test_less_than_one_floor_is_a_mistake(tmp_path: Path) -> None:
    rule = "rule: at_most, metric: divergence.kl_mean, limit: 0.1, above_noise: 0.5"
    (found,) = problems(tmp_path, "noise_floor: [rounding]\n", rule)
    assert found.key == "rules[1].above_noise"


def test_the_cost_counts_the_reference_once_and_once_for_each_condition(tmp_path: Path) -> None:
    assert amount(plan(tmp_path).suites).noise == 0
    assert amount(plan(tmp_path, "noise_floor: [rounding, attention]\n").suites).noise == 3 * 16 * 256
    made = plan(tmp_path, "noise_floor: {conditions: [rounding], documents: 900}\n")
    assert amount(made.suites).noise == 2 * 40 * 256, "there are no more documents than that"
