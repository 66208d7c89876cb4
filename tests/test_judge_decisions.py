"""Single decisions of the judge that no whole run depends on: slices, comparisons to come, what excuses a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pytest

from harness.judge import judge
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Measurement, Metric, Skipped, Slice, Verdict
from harness.rules import Bound, Decision, Facts, Rule
from harness.rules.not_worse import NotWorse


def not_worse(metric: str = "m", **fields: Any) -> NotWorse:
    return NotWorse(metric=metric, why="w", margin=0.02, **fields)


def measured(name: str = "m", change: float = 1.01, half: float = 0.002, **fields: Any) -> Measurement:
    return Measurement(
        name=name, unit="ratio", better="lower", neutral=1.0, change=change, low=change - half, high=change + half,
        n=5000, method="mean", **{"basis": "sampled", "clusters": 50, **fields},
    )  # fmt: skip


def verdicts(*rules: Rule, found: tuple[Measurement, ...] = (measured(),), **fields: Any) -> tuple[Verdict, ...]:
    specs = tuple(RuleSpec(rule=rule, where=f"g.yaml:{line}") for line, rule in enumerate(rules, start=2))
    lost = fields.pop("lost", ())
    return judge([GateSpec(name="g", source="g.yaml", rules=specs)], found, lost, False, **fields)


class Fixed(Rule):
    """Decides what it is told."""

    decision: Any = None

    def bound(self, metric: Facts) -> Bound:
        return Bound("at most 1", upper=1.0)

    def judge(self, measurement: Measurement, identical: bool) -> Decision:
        return self.decision  # type: ignore[no-any-return]


class TestSlices:
    def sliced(self, changes: Mapping[str, float], label: str = "kind") -> tuple[Slice, ...]:
        return tuple(
            Slice(
                suite="core",
                label=label,
                value=value,
                documents=50,
                measurements=(measured(change=change),),
                skipped=(),
            )
            for value, change in changes.items()
        )

    def test_a_rule_holds_on_each_slice_and_says_on_which(self) -> None:
        parts = self.sliced({"prose": 1.0, "sums": 1.5})
        found = verdicts(not_worse(slices="kind"), slices=parts)
        assert [(each.labels, each.status) for each in found] == [
            ({"slice": "kind=prose"}, "pass"), ({"slice": "kind=sums"}, "fail"),
        ]  # fmt: skip
        assert [each.status for each in verdicts(not_worse(slices="kind=pro*"), slices=parts)] == ["pass"]

    def test_a_slice_that_was_not_measured_is_one_error_that_names_those_that_were(self) -> None:
        parts = (*self.sliced({"prose": 1.0, "sums": 1.0}), *self.sliced({"long": 1.0}, label="length"))
        (found,) = verdicts(not_worse(slices="kind=code"), slices=parts)
        assert (found.status, found.failure, found.labels) == ("error", "usage", {})
        assert "m was not measured on any slice kind=code; slices measured by kind: prose, sums (" in found.because
        (found,) = verdicts(not_worse(slices="language"), slices=parts)
        assert "slices measured by language: none at all (" in found.because

    def test_a_metric_that_a_slice_lacks_is_an_error_on_that_slice(self) -> None:
        parts = (
            *self.sliced({"prose": 1.0}),
            Slice(
                suite="core",
                label="kind",
                value="sums",
                documents=5,
                measurements=(),
                skipped=(Skipped(measure="m", reason="too short"),),
            ),
        )
        assert [each.status for each in verdicts(not_worse(slices="kind"), slices=parts)] == ["pass", "error"]

    def test_slices_of_an_advisory_rule_are_a_family_of_their_own(self) -> None:
        """The breach is 1.2 times its half width off: alone a failure, not among twenty slices."""
        rule = not_worse(slices="kind", level="warn")
        alone, many = ({f"s{i}": 1.0225 if i == 0 else 1.0 for i in range(count)} for count in (1, 20))
        assert verdicts(rule, slices=self.sliced(alone))[0].status == "fail"
        first = verdicts(rule, slices=self.sliced(many))[0]
        assert first.status == "inconclusive"
        assert "not among 20 slices of g.yaml:2 (p = " in first.because
        twice = verdicts(rule, rule, slices=self.sliced({f"s{i}": 1.0225 for i in range(1)}))
        assert [each.status for each in twice] == ["fail", "fail"], "each rule corrects for its own slices"
        beside = (*(measured(f"n.{i}", change=1.0) for i in range(20)),)
        blocking = tuple(not_worse(each.name) for each in beside)
        assert verdicts(rule, *blocking, found=beside, slices=self.sliced(alone))[0].status == "fail"

    def test_comparisons_to_come_do_not_count_among_slices_of_an_advisory_rule(self) -> None:
        rule = not_worse(slices="kind", level="warn")
        assert verdicts(rule, slices=self.sliced({"prose": 1.0225}), elsewhere=30)[0].status == "fail"


class TestComparisonsToCome:
    def test_a_failure_must_hold_among_them(self) -> None:
        barely = (measured(change=1.0225),)
        assert [verdicts(not_worse(), found=barely, elsewhere=more)[0].status for more in (0, 30)] == [
            "fail", "inconclusive",
        ]  # fmt: skip

    def test_each_counts_once(self) -> None:
        """p = 0.0245 at a level of 0.025: alone a failure, with a single further comparison none."""
        t = 2.0183
        found = (measured(change=1.02 + 0.001 * t, half=0.001 * 2.009575),)
        assert verdicts(not_worse(), found=found)[0].status == "fail"
        assert verdicts(not_worse(), found=found, elsewhere=0)[0].status == "fail"
        assert verdicts(not_worse(), found=found, elsewhere=1)[0].status == "inconclusive"


class TestExcuses:
    @pytest.mark.parametrize(
        ("status", "p_value", "level"),
        [
            ("inconclusive", 0.3, "warn"),
            ("inconclusive", None, "block"),
            ("fail", 0.001, "block"),
            ("fail", None, "block"),
            ("pass", 0.9, "block"),
            ("error", None, "block"),
        ],
    )
    def test_only_an_interval_that_contains_the_limit_is_excused(
        self, status: str, p_value: float | None, level: str
    ) -> None:
        decision = Decision(status, "e", "f", None, "b", p_value)  # type: ignore[arg-type]
        (found,) = verdicts(Fixed(metric="m", why="w", on_inconclusive="warn", decision=decision))
        assert (found.status, found.level) == (status, level)
        assert found.because == ("b; advisory, because of on_inconclusive: warn" if level == "warn" else "b")

    @pytest.mark.parametrize("waits", ["block", "extend"])
    def test_nothing_is_excused_unless_asked(self, waits: Literal["block", "extend"]) -> None:
        decision = Decision("inconclusive", "e", "f", None, "b", 0.3)
        (found,) = verdicts(Fixed(metric="m", why="w", on_inconclusive=waits, decision=decision))
        assert (found.level, found.because) == ("block", "b")

    def test_an_advisory_rule_has_nothing_to_excuse(self) -> None:
        decision = Decision("inconclusive", "e", "f", None, "b", 0.3)
        (found,) = verdicts(Fixed(metric="m", why="w", level="warn", on_inconclusive="warn", decision=decision))
        assert (found.level, found.because) == ("warn", "b")


class TestContradictions:
    @pytest.mark.parametrize("field", ["neutral", "reference", "variant", "change", "low", "high", "variant_high"])
    @pytest.mark.parametrize(("number", "wrong"), [(1e300, False), (1.01e300, True), (-1.01e300, True)])
    def test_a_number_beyond_the_largest_is_an_error_wherever_it_stands(
        self, field: str, number: float, wrong: bool
    ) -> None:
        found = measured().model_copy(update={field: number})
        because = verdicts(not_worse(), found=(found,))[0].because
        assert ("expected numbers of at most 1e+300" in because) is wrong

    @pytest.mark.parametrize(
        ("fields", "wrong"),
        [
            ({"low": 0.5, "high": 0.5}, False), ({"low": None, "high": None}, False), ({"low": 0.4, "high": 0.5}, True),
            ({"low": 0.5, "high": 0.6}, True), ({"variant": 3.0, "variant_low": 3.0, "variant_high": 3.0}, False),
            ({"variant": 3.0, "variant_low": 2.0, "variant_high": 3.0}, True),
            ({"variant": 3.0, "variant_low": 3.0, "variant_high": 4.0}, True),
        ],
    )  # fmt: skip
    def test_what_was_counted_has_no_interval_of_some_width(self, fields: dict[str, Any], wrong: bool) -> None:
        exact = measured(change=0.5, half=0.0, basis="counted").model_copy(update=fields)
        sampled = exact.model_copy(update={"basis": "sampled"})
        assert ("counted, yet with the interval" in verdicts(not_worse(), found=(exact,))[0].because) is wrong
        assert "counted, yet" not in verdicts(not_worse(), found=(sampled,))[0].because


class TestChecks:
    @pytest.mark.parametrize("position", range(2))
    @pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
    def test_a_decision_with_a_number_that_is_not_finite_is_an_error(self, position: int, number: float) -> None:
        numbers: list[float | None] = [None, None]
        numbers[position] = number
        (found,) = verdicts(
            Fixed(metric="m", why="w", decision=Decision("pass", "e", "f", numbers[0], "b", numbers[1]))
        )
        assert found.status == "error"
        assert f"found {number} in the decision" in found.because

    @pytest.mark.parametrize("field", ["expected", "found", "because", "reason"])
    def test_a_decision_whose_texts_are_none_is_an_error(self, field: str) -> None:
        texts: dict[str, Any] = {"expected": "e", "found": "f", "because": "b", "reason": "r"} | {field: 3}
        (found,) = verdicts(Fixed(metric="m", why="w", decision=Decision("pass", margin=None, **texts)))
        assert found.status == "error"
        assert "expected a Decision with texts" in found.because

    def test_one_observation_is_judged_and_none_is_not(self) -> None:
        one = measured().model_copy(update={"n": 1})
        none = measured().model_copy(update={"n": 0})
        assert [verdicts(not_worse(), found=(each,))[0].status for each in (one, none)] == ["pass", "error"]

    def test_a_pass_has_no_class_of_failure_and_anything_else_the_concern_of_its_metric(self) -> None:
        metric = Metric(name="m", unit="ratio", better="lower", neutral=1.0, concern="numerics")
        assert verdicts(not_worse(), metrics=[metric])[0].failure is None
        worse = (measured(change=1.5),)
        assert verdicts(not_worse(), found=worse, metrics=[metric])[0].failure == "numerics"
        assert verdicts(not_worse(), found=worse)[0].failure == "quality"
        lost = (Skipped(measure="m", reason="no kernel"),)
        assert verdicts(not_worse(), found=(), lost=lost, metrics=[metric])[0].failure == "numerics"
        whole = (Skipped(measure="m.*", reason="no kernel"),)
        declared = [
            Metric(name="x", unit="", better="lower", concern="resources"),
            metric.model_copy(update={"name": "m.a"}),
        ]
        assert verdicts(not_worse("m.a"), found=(), lost=whole, metrics=declared)[0].failure == "numerics"


class TestWhatNoRunCouldMeasure:
    def judged(self, unsupported: bool, **fields: Any) -> Verdict:
        lost = Skipped(measure="m", reason="the engine shows no weights", unsupported=unsupported)
        rule = Fixed(metric="m", why="w", decision=Decision("pass", "e", "f", 1.0, "b"), **fields)
        (found,) = verdicts(rule, found=(), lost=(lost,))
        return found

    def test_blocks_unless_the_rule_excuses_it(self) -> None:
        for unsupported, waits, level in (
            (True, "block", "block"),
            (True, "warn", "warn"),
            (False, "warn", "block"),
        ):
            found = self.judged(unsupported, on_unsupported=waits)
            assert (found.status, found.level) == ("error", level)
            assert ("advisory, because of on_unsupported: warn" in found.because) == (level == "warn")
