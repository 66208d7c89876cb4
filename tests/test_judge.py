"""The judge: loops over rules, and nothing that is missing or broken ever passes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.judge import judge, rejudge
from harness.measures.layer_error import LayerError
from harness.measures.perplexity import Perplexity
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Clock, Environment, Identity, Measurement, Run, Skipped, Verdict
from harness.records.conclusion import overall
from harness.records.own_rules import OWN_GATE
from harness.rules import Bound, Decision, Facts, Rule
from harness.rules.at_least import AtLeast
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse
from harness.statistics import tango_interval
from tests.helpers.results import interval, number
from tests.helpers.unnamed import without_names

for plugin, name in ((AtLeast, "at_least"), (AtMost, "at_most"), (NotWorse, "not_worse")):
    plugin.kind = name


def gate(*rules: Rule, name: str = "ship") -> GateSpec:
    specs = tuple(RuleSpec(rule=rule, where=f"ship.yaml:{line}") for line, rule in enumerate(rules, start=2))
    return GateSpec(name=name, source="ship.yaml", rules=specs)


def not_worse(metric: str = "perplexity.ratio", margin: float = 0.02, **fields: Any) -> NotWorse:
    return NotWorse(metric=metric, why="a reader notices", margin=margin, **fields)


def measured(name: str = "perplexity.ratio", change: float = 1.01, half: float = 0.002, **fields: Any) -> Measurement:
    settings: dict[str, Any] = {
        "name": name,
        "unit": "ratio",
        "better": "lower",
        "neutral": 1.0,
        "change": change,
        "low": change - half,
        "high": change + half,
        "n": 5000,
        "clusters": 50,
        "basis": "sampled",
        "method": "mean over tokens",
    }
    return Measurement(**(settings | fields))


def statuses(
    *rules: Rule, found: tuple[Measurement, ...] = (), lost: tuple[Skipped, ...] = (), same: bool = False
) -> list[str]:
    return [verdict.status for verdict in judge([gate(*rules)], found, lost, same)]


class TestOneRule:
    def test_a_verdict_says_who_where_and_why(self) -> None:
        (verdict,) = judge([gate(not_worse())], [measured(labels={"suite": "core"})], [], False)
        assert verdict == Verdict(
            gate="ship",
            rule="not_worse",
            metric="perplexity.ratio",
            labels={"suite": "core"},
            status="pass",
            expected="degradation < 0.02 from 1 (allowed: up to 1.02)",
            found="1.01, 95 % interval [1.008, 1.012]",
            margin=verdict.margin,
            because=(
                "perplexity.ratio is 1.01, 95 % interval [1.008, 1.012]; "
                "expected: degradation < 0.02 from 1 (allowed: up to 1.02); the whole interval is within the limit"
            ),
            reason="the whole interval is within the limit",
            level="block",
            where="ship.yaml:2",
            why="a reader notices",
        )
        assert verdict.margin == pytest.approx(0.008)

    def test_a_pattern_is_judged_on_every_match(self) -> None:
        found = (
            measured("tasks.a.ratio"),
            measured("tasks.b.ratio", change=1.5),
            measured("tasks.a.other", change=9.0),
        )
        verdicts = judge([gate(not_worse("tasks.*.ratio"))], found, [], False)
        assert [(v.metric, v.status) for v in verdicts] == [
            ("tasks.a.ratio", "pass"),
            ("tasks.b.ratio", "fail"),
        ]

    def test_labels_tell_measurements_of_one_name_apart(self) -> None:
        found = (measured(labels={"module": "a"}), measured(labels={"module": "b"}, change=2.0))
        verdicts = judge([gate(not_worse())], found, [], False)
        assert [(v.labels["module"], v.status) for v in verdicts] == [("a", "pass"), ("b", "fail")]

    def test_names_are_case_sensitive_and_brackets_match_themselves(self) -> None:
        assert statuses(not_worse("Perplexity.ratio"), found=(measured(),)) == ["error"]
        assert statuses(not_worse("tasks.a[1].ratio"), found=(measured("tasks.a[1].ratio"),)) == ["pass"]


class TestAbsence:
    def test_a_misspelt_metric_is_an_error_with_the_nearest_name(self) -> None:
        (verdict,) = judge([gate(not_worse("perplexity.ration"))], [measured()], [], False)
        assert verdict.status == "error"
        assert "no measured metric is called perplexity.ration; did you mean perplexity.ratio?" in verdict.because
        assert verdict.where == "ship.yaml:2"

    def test_nothing_measured_is_an_error(self) -> None:
        assert statuses(not_worse()) == ["error"]
        assert statuses(not_worse("*")) == ["error"]

    def test_a_skipped_metric_is_an_error_that_quotes_the_reason(self) -> None:
        lost = Skipped(measure="perplexity.ratio", reason="token ids differ")
        (verdict,) = judge([gate(not_worse())], [], [lost], False)
        assert verdict.status == "error"
        assert "token ids differ" in verdict.because

    @pytest.mark.parametrize(
        ("metric", "missing"),
        [
            ("perplexity.ratio", "perplexity.*"),
            ("layers.worst", "layers.*"),
            ("tasks.arc.accuracy", "tasks.arc.*"),
            ("tasks.*.accuracy", "tasks.arc.*"),
            ("*.accuracy", "tasks.arc.*"),
        ],
    )
    def test_a_measure_skipped_whole_reaches_its_metrics(self, metric: str, missing: str) -> None:
        (verdict,) = judge([gate(not_worse(metric))], [], [Skipped(measure=missing, reason="no kernel")], False)
        assert verdict.status == "error"
        assert "no kernel" in verdict.because

    def test_other_skipped_metrics_do_not_matter(self) -> None:
        lost = (
            Skipped(measure="memory.peak_bytes", reason="x"),
            Skipped(measure="perplexity.value", reason="x"),
        )
        assert statuses(not_worse(), found=(measured(),), lost=lost) == ["pass"]

    def test_another_metric_of_the_same_task_may_be_missing(self) -> None:
        lost = (Skipped(measure="tasks.arc.recovery", reason="the reference scores 0"),)
        assert statuses(not_worse("tasks.*.accuracy"), found=(measured("tasks.arc.accuracy"),), lost=lost) == ["pass"]

    @pytest.mark.parametrize("metric", ["tasks.arc.accuracy", "tasks.*.accuracy"])
    def test_what_a_rule_covers_but_could_not_be_measured_is_an_error_beside_matches(self, metric: str) -> None:
        found = (measured("tasks.arc.accuracy", labels={"suite": "a"}),)
        lost = (Skipped(measure="tasks.arc.accuracy", reason="no documents", labels={"suite": "b"}),)
        verdicts = judge([gate(not_worse(metric))], found, lost, False)
        assert [(v.status, v.labels["suite"]) for v in verdicts] == [("pass", "a"), ("error", "b")]
        assert overall(verdicts) == ("error", 2)


@pytest.fixture
def a_run() -> Run:
    model: dict[str, Any] = dict.fromkeys(("name", "source", "architecture", "dtype", "device", "attention"), "x")
    model |= {"revision": None, "parameters": 1, "config_sha256": "c", "tokenizer_sha256": "t"}
    return Run(
        name="x", data_key="k", verdict="pass", exit_code=0, asked={},
        reference=Identity(**model, weights_sha256="a"), variant=Identity(**model, weights_sha256="b"),
        environment=Environment(harness="0", python="3", platform="x", processor="x", threads=1, packages={}),
        clock=Clock(started="", finished="", seconds={}),
        measurements=(measured(),), skipped=(), verdicts=(),
    )  # fmt: skip


def test_other_gates_do_not_make_up_for_a_measure_that_failed(a_run: Run) -> None:
    loose = gate(AtMost(metric="perplexity.ratio", why="anything", limit=1e6))
    assert rejudge(a_run, [loose]).exit_code == 0
    failed = Verdict(
        gate=OWN_GATE, rule="every measure runs", metric="", status="error", expected="", found="", because="it broke",
        level="block", where="",
    )  # fmt: skip
    again = rejudge(a_run.model_copy(update={"verdicts": (failed,)}), [loose])
    assert (again.verdict, again.exit_code) == ("error", 2)


class TestBroken:
    def nothing(self, side: str) -> Measurement:
        numbers = measured(non_finite=side, method=f"3 of 90 tokens are NaN on the {side}'s side")
        return numbers.model_copy(update=dict.fromkeys(("change", "low", "high")))

    def test_non_finite_variant_fails_and_reference_is_an_error(self) -> None:
        for side, status in (("variant", "fail"), ("reference", "error")):
            (verdict,) = judge([gate(not_worse())], [self.nothing(side)], [], True)
            assert verdict.status == status
            assert "3 of 90 tokens" in verdict.because

    def test_what_must_not_be_judged_is_an_error_that_says_why(self) -> None:
        (verdict,) = judge([gate(not_worse())], [measured(not_judged="weights are simulated")], [], True)
        assert verdict.status == "error"
        assert "weights are simulated" in verdict.because

    @pytest.mark.parametrize("change", [0.9, 1.01, 1.5])
    def test_what_the_machine_disturbed_neither_passes_nor_fails(self, change: float) -> None:
        (verdict,) = judge([gate(not_worse())], [measured(change=change, disturbed="swapping")], [], True)
        assert verdict.status == "inconclusive"
        assert "swapping while it was measured" in verdict.because

    def test_no_observation_is_an_error(self) -> None:
        assert statuses(not_worse(), found=(measured(n=0, clusters=0),), same=True) == ["error"]

    def test_numbers_that_slipped_past_the_record_do_not_pass(self) -> None:
        for bad in (float("nan"), float("inf"), float("-inf")):
            for fields in (
                {"change": bad, "low": bad, "high": bad},
                {"high": bad},
                {"low": bad, "change": bad},
            ):
                slipped = measured().model_copy(update=fields)
                if fields.get("high") == float("-inf") or fields.get("change") == float("-inf"):
                    continue  # infinitely good is still refused when the record is made
                assert statuses(not_worse(), found=(slipped,)) != ["pass"], fields

    def test_a_rule_that_raises_names_itself_and_hides_nothing(self) -> None:
        class Raises(Rule):
            """Raises."""

            def bound(self, metric: Facts) -> Bound:
                raise ZeroDivisionError("division by zero")

        Raises.kind = "raises"  # a plugin is called after its file, or after its entry point by the loader
        verdicts = judge([gate(Raises(metric="*", why="w"), not_worse())], [measured()], [], False)
        assert [v.status for v in verdicts] == ["error", "pass"]
        assert "the rule raises failed on perplexity.ratio: ZeroDivisionError: division by zero" in verdicts[0].because

    @pytest.mark.parametrize(
        "decision",
        [
            None,
            True,
            "pass",
            Decision("fine", "", "", None, ""),  # type: ignore[arg-type]
            Decision("pass", "", "", float("nan"), ""),
            Decision("pass", 1, "", None, ""),  # type: ignore[arg-type]
            Decision("pass", "", "", None, "", float("inf")),
            Decision("pass", "", "", "wide", ""),  # type: ignore[arg-type]
        ],
    )
    def test_a_rule_that_returns_something_else_is_an_error(self, decision: object) -> None:
        class Odd(Rule):
            """Odd."""

            def bound(self, metric: Facts) -> Bound:
                return Bound("at most 1", upper=1.0)

            def judge(self, measurement: Measurement, identical: bool) -> Decision:
                return decision  # type: ignore[return-value]

        assert statuses(Odd(metric="*", why="w"), not_worse(), found=(measured(),)) == ["error", "pass"]


class TestOverall:
    def of(self, *found: tuple[str, str]) -> tuple[str, int]:
        base = judge([gate(not_worse())], [measured()], [], False)[0]
        return overall([base.model_copy(update={"status": status, "level": level}) for status, level in found])

    @pytest.mark.parametrize(
        ("blocking", "wanted"),
        [
            (["pass", "pass"], ("pass", 0)),
            (["pass", "fail"], ("fail", 1)),
            (["fail", "error", "inconclusive"], ("error", 2)),
            (["pass", "inconclusive"], ("inconclusive", 3)),
            (["inconclusive", "fail"], ("fail", 1)),
            (["pass", "skipped"], ("error", 2)),
        ],
    )
    def test_the_worst_blocking_status_wins(self, blocking: list[str], wanted: tuple[str, int]) -> None:
        assert self.of(*((status, "block") for status in blocking)) == wanted
        assert self.of(*((status, "block") for status in reversed(blocking))) == wanted

    def test_warnings_are_only_shown(self) -> None:
        assert self.of(("pass", "block"), ("fail", "warn"), ("error", "warn")) == ("pass", 0)

    def test_nothing_judged_is_an_error(self) -> None:
        assert overall([]) == ("error", 2)
        assert self.of(("pass", "warn")) == ("error", 2)
        assert overall(judge([], [measured()], [], True)) == ("error", 2)


class TestManyRules:
    def barely(self, count: int) -> tuple[tuple[Rule, ...], tuple[Measurement, ...]]:
        """One comparison barely beyond its margin among ``count − 1`` that pass."""
        found = (measured("m.0", change=1.0225), *(measured(f"m.{i}", change=1.0) for i in range(1, count)))
        return tuple(not_worse(entry.name) for entry in found), found

    def test_a_breach_alone_fails_and_among_many_is_inconclusive(self) -> None:
        rules, found = self.barely(1)
        assert statuses(*rules, found=found) == ["fail"]
        rules, found = self.barely(20)
        verdicts = judge([gate(*rules)], found, [], False)
        assert [v.status for v in verdicts] == ["inconclusive"] + 19 * ["pass"]
        assert "among 20 blocking comparisons" in verdicts[0].because
        assert overall(verdicts) == ("inconclusive", 3)

    def test_a_clear_breach_fails_among_many(self) -> None:
        rules, found = self.barely(20)
        assert statuses(*rules, found=(measured("m.0", change=1.05), *found[1:]))[0] == "fail"

    def test_rules_of_all_gates_count_together_and_warnings_do_not(self) -> None:
        rules, found = self.barely(20)
        apart = [gate(rule, name=f"g{i}") for i, rule in enumerate(rules)]
        assert judge(apart, found, [], False)[0].status == "inconclusive"
        shown = [rules[0], *(rule.model_copy(update={"level": "warn"}) for rule in rules[1:])]
        assert statuses(*shown, found=found)[0] == "fail"
        assert statuses(rules[0].model_copy(update={"level": "warn"}), *rules[1:], found=found)[0] == "fail"

    def test_exact_and_point_failures_are_not_chance(self) -> None:
        rules, found = self.barely(20)
        exact = measured("memory.weight_bytes", change=9.0, half=0.0, basis="counted", neutral=0.0, unit="bytes")
        point = not_worse("m.0", decide="point")
        limit = AtMost(metric="memory.weight_bytes", why="w", limit=8.0)
        assert statuses(limit, point, *rules[1:], found=(exact, *found))[:2] == ["fail", "fail"]

    def test_false_failures_of_a_gate_stay_rare(self) -> None:
        """30 metrics whose truth is at the margin: without correction about half of the gates fail."""
        generator = np.random.default_rng(54)
        failed = alone = 0
        for _ in range(200):
            found = tuple(
                measured(f"m.{i}", change=1.02 + 0.001 * z, half=0.001 * 2.0096, clusters=50)
                for i, z in enumerate(generator.standard_t(49, size=30))
            )
            verdicts = judge([gate(not_worse("m.*"))], found, [], False)
            failed += overall(verdicts)[0] == "fail"
            alone += any(number(entry.low) > 1.02 for entry in found)
        assert alone / 200 > 0.4
        assert failed / 200 <= 0.05

    @given(st.randoms(use_true_random=False), st.integers(1, 8))
    @settings(max_examples=30, deadline=None)
    def test_order_of_rules_and_measurements_does_not_matter(self, order: random.Random, count: int) -> None:
        found = [measured(f"m.{i}", change=order.choice([1.0, 1.019, 1.0222, 1.03])) for i in range(count)]
        rules = [not_worse(f"m.{i}") for i in range(count)]
        first = {v.metric: v.status for v in judge([gate(*rules)], found, [], False)}
        order.shuffle(found)
        order.shuffle(rules)
        assert {v.metric: v.status for v in judge([gate(*rules)], found, [], False)} == first


def tokens(documents: int, damage: float, seed: int, spread: float = 0.02) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    document = np.arange(documents).repeat(15)
    reference = generator.exponential(2.0, len(document)) + 0.01
    variant = reference + damage + spread * generator.normal(size=documents)[document]
    columns = {"document": document, "reference_nll": reference, "variant_nll": np.maximum(variant, 0.0)}
    return pd.DataFrame(columns | {"reference_top1_p": 0.5, "variant_top1_p": 0.5, "bytes": 1.0})


def verdict_on(table: pd.DataFrame, margin: float = 0.05) -> str:
    found = Perplexity().measure(table)
    measurements = [entry for entry in found if isinstance(entry, Measurement)]
    skipped = [entry for entry in found if isinstance(entry, Skipped)]
    return overall(judge([gate(not_worse(margin=margin))], measurements, skipped, False))[0]


class TestFromTableToVerdict:
    """Properties of the chain table → measurement → verdict."""

    @given(documents=st.integers(2, 40), damage=st.floats(-0.1, 0.2), seed=st.integers(0, 99))
    @settings(max_examples=25, deadline=None)
    def test_an_identical_document_more_never_turns_pass_into_fail(
        self, documents: int, damage: float, seed: int
    ) -> None:
        table = tokens(documents, damage, seed)
        last = table[table["document"] == 0].assign(document=documents)
        last["variant_nll"] = last["reference_nll"]
        before, after = verdict_on(table), verdict_on(pd.concat([table, last]))
        assert (before, after) != ("pass", "fail")

    @given(documents=st.integers(2, 30), seed=st.integers(0, 99), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
    @settings(max_examples=20, deadline=None)
    def test_one_bad_number_never_passes(self, documents: int, seed: int, bad: float) -> None:
        table = tokens(documents, -0.1, seed)
        assert verdict_on(table) == "pass" or documents < 6
        table.loc[seed % len(table), "variant_nll"] = bad
        assert verdict_on(table) == "fail"
        table.loc[0, "reference_nll"] = bad
        assert verdict_on(table) == "error"

    def test_empty_missing_and_single_documents_never_pass(self) -> None:
        assert verdict_on(tokens(30, -0.1, 0)) == "pass"
        assert verdict_on(tokens(30, -0.1, 0).iloc[:0]) == "error"
        assert verdict_on(tokens(1, -0.1, 0)) == "inconclusive"
        assert overall(judge([gate(not_worse())], [], [], True))[0] == "error"

    def test_copies_of_one_document_are_no_sample(self) -> None:
        one = tokens(1, 0.0, 0)
        copies = pd.concat([one.assign(document=index) for index in range(25)])
        assert verdict_on(copies) == "inconclusive"

    @pytest.mark.parametrize(("damage", "wanted"), [(0.0, "pass"), (0.2, "fail"), (np.log(1.05), "inconclusive")])
    def test_damage_within_at_and_beyond_the_margin(self, damage: float, wanted: str) -> None:
        assert verdict_on(tokens(40, damage, 7)) == wanted

    @given(documents=st.integers(2, 30), damage=st.floats(-0.1, 0.2), seed=st.integers(0, 99))
    @settings(max_examples=15, deadline=None)
    def test_order_of_tokens_and_documents_changes_nothing(self, documents: int, damage: float, seed: int) -> None:
        table = tokens(documents, damage, seed)
        other = table.sample(frac=1, random_state=seed)
        other["document"] = np.random.default_rng(seed).permutation(documents)[other["document"]]
        assert without_names(Perplexity().measure(table)) == without_names(Perplexity().measure(other))
        assert verdict_on(table) == verdict_on(other)


class TestFaults:
    """Broken numbers on their whole way from the table to the exit code."""

    def verdicts(self, rule: Rule, found: Sequence[Measurement | Skipped], same: bool = False) -> tuple[Verdict, ...]:
        measurements = [entry for entry in found if isinstance(entry, Measurement)]
        skipped = [entry for entry in found if isinstance(entry, Skipped)]
        return judge([gate(rule)], measurements, skipped, same)

    def layers(self, modules: dict[str, float]) -> pd.DataFrame:
        """Modules whose squared error is a given share of the squared reference, in 20 documents."""
        reference = np.random.default_rng(0).uniform(1, 2, 20)
        parts = [
            pd.DataFrame(
                {
                    "document": range(20),
                    "module": module,
                    "kind": "linear",
                    "depth": depth,
                    "sum_squared_error": share * reference,
                    "sum_squared_reference": reference,
                    "sum_squared_variant": reference,
                    "dot": reference,
                    "n": 8,
                }
            )
            for depth, (module, share) in enumerate(modules.items())
        ]
        return pd.concat(parts, ignore_index=True)

    def test_nan_in_one_layer_fails_the_rule_on_layers_and_no_other(self) -> None:
        table = self.layers({"a": 0.01, "b": 0.01})
        table["sum_squared_error"] *= np.random.default_rng(1).uniform(0.9, 1.1, len(table))
        table.loc[table["module"] == "b", "sum_squared_error"] = np.nan
        found = list(LayerError().measure(table))
        verdicts = self.verdicts(AtMost(metric="layers.relative_error", why="w", limit=0.5), found)
        assert [(v.labels["module"], v.status) for v in verdicts] == [("a", "pass"), ("b", "fail")]

    def test_zero_norm_reference_is_an_error_that_names_the_module(self) -> None:
        table = self.layers({"a": 0.01, "dead": 0.01})
        table.loc[table["module"] == "dead", "sum_squared_reference"] = 0.0
        verdicts = self.verdicts(
            AtMost(metric="layers.relative_error", why="w", limit=0.5), LayerError().measure(table)
        )
        assert "the reference output of dead is zero" in verdicts[-1].because
        assert overall(verdicts) == ("error", 2)

    @pytest.mark.parametrize(("side", "wanted"), [("reference", ("error", 2)), ("variant", ("fail", 1))])
    def test_perplexity_of_infinity(self, side: str, wanted: tuple[str, int]) -> None:
        table = tokens(20, 0.0, 0)
        table[f"{side}_nll"] = 900.0
        verdicts = self.verdicts(not_worse(), list(Perplexity().measure(table)))
        assert overall(verdicts) == wanted
        assert f"the perplexity of the {side} is inf" in verdicts[0].because

    def test_no_spread_is_inconclusive_unless_both_sides_are_the_same_bytes(self) -> None:
        found = list(Perplexity().measure(tokens(30, 0.0, 0, spread=0.0)))
        assert overall(self.verdicts(not_worse(), found)) == ("inconclusive", 3)
        assert overall(self.verdicts(not_worse(), found, same=True)) == ("pass", 0)

    def test_no_discordant_pair_in_few_items_is_inconclusive(self) -> None:
        around = interval(tango_interval(0, 0, 30))
        fields: dict[str, Any] = {"neutral": 0.0, "better": "higher", "unit": "share"}
        found = measured("tasks.a.accuracy", 0.0, low=around.low, high=around.high, **fields)
        assert statuses(not_worse("tasks.a.accuracy"), found=(found,)) == ["inconclusive"]

    def test_a_tie_with_the_margin_is_inconclusive(self) -> None:
        tie = measured(change=1.01, low=1.0, high=1.02)
        assert statuses(not_worse(), found=(tie,)) == ["inconclusive"]
        assert statuses(not_worse(), found=(tie,), same=True) == ["inconclusive"]
