"""``harness plan``, ``harness lint`` and the judge agree on which metrics a rule covers, whatever its pattern is."""

from __future__ import annotations

from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from harness.errors import Problem
from harness.forecast.linting.evidence import Evidence
from harness.forecast.linting.lint import lint
from harness.forecast.measured import Measured
from harness.forecast.needs import needs
from harness.judge import judge
from harness.planning.checking import Checker
from harness.planning.gate_file import Gate, check_metrics
from harness.planning.sampling.slices import slice_patterns
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Measurement, Metric, Skipped
from harness.records.metric import find_metric
from harness.records.patterns import match_stars, matches
from harness.rules.at_most import AtMost
from harness.system.yaml_file import YamlFile

names = st.text("ab.[]!-?\\", min_size=1, max_size=6)
patterns = st.text("ab.[]!-?\\*", min_size=1, max_size=6)
TRAPS = ["a.[b]", "a.b", "a.", "[ab]", "a", "ab", "aab", "?", "[!a]"]


def covering(pattern: str, present: list[str], missing: list[str]) -> tuple[set[str], set[str], set[str], bool]:
    """The metrics that plan, judge and the judge of skipped ones give to a rule, and whether lint finds none for it."""
    rule = AtMost(metric=pattern, limit=1.0, decide="point", why="w")
    gate = GateSpec(name="g", source="g", rules=(RuleSpec(rule=rule, where="g:1"),))
    metrics = [Measured(Metric(name=name, unit="nats", better="lower"), "s", 50) for name in (*present, *missing)]
    planned = {need.metric for need in needs([gate], metrics)}
    measurements = [
        Measurement(name=name, unit="nats", better="lower", basis="sampled", change=0.5, n=5, clusters=5, method="m")
        for name in present
    ]
    skipped = [Skipped(measure=name, reason="gone") for name in missing]
    verdicts = judge([gate], measurements, skipped, identical=False)
    judged = {v.metric for v in verdicts if v.status == "pass"}
    lost = {v.metric for v in verdicts if v.because.endswith(": gone")}
    findings = lint(gate, Evidence(metrics, sized=True))
    return planned, judged, lost, any("which no suite of the plan measures" in each.what for each in findings)


@given(pattern=patterns, present=st.lists(names, unique=True), missing=st.lists(names, unique=True))
@example(pattern="a.[b]", present=TRAPS, missing=[])
@example(pattern="[ab]", present=TRAPS, missing=[])
@example(pattern="a.*", present=TRAPS, missing=[])
@example(pattern="*", present=TRAPS, missing=["a.c"])
@example(pattern="**a**", present=TRAPS, missing=[])
@example(pattern="a*a", present=["a", "aa", "aba"], missing=["a"])
@example(pattern="?", present=TRAPS, missing=[])
def test_plan_lint_and_judge_cover_the_same_metrics(pattern: str, present: list[str], missing: list[str]) -> None:
    missing = [name for name in missing if name not in present]
    planned, judged, lost, unknown = covering(pattern, present, missing)
    assert judged == {name for name in present if matches(pattern, name)}
    assert lost == {name for name in missing if matches(pattern, name)}
    assert planned == judged | lost
    assert unknown == (not planned)


@given(pattern=patterns, present=st.lists(names, min_size=1, unique=True))
@example(pattern="a.[b]", present=["a.b"])
@example(pattern="a.[b]", present=["a.[b]"])
def test_the_plan_refuses_exactly_the_rules_that_the_judge_would_miss(pattern: str, present: list[str]) -> None:
    rule = AtMost(metric=pattern, limit=1.0, decide="point", why="w")
    metrics = [Metric(name=name, unit="nats", better="lower") for name in present]
    problems: list[Problem] = []
    check = Checker(YamlFile("g.yaml", {}, {}), Path(), problems)
    check_metrics(Gate("g", "g.yaml", {0: rule}, True, check), metrics, all_known=True)
    assert bool(problems) == (not any(matches(pattern, name) for name in present))


@given(pattern=patterns, name=names)
def test_what_the_stars_of_a_pattern_stand_for_makes_the_name_again(pattern: str, name: str) -> None:
    if matches(pattern, name):
        pieces = pattern.split("*")
        texts = match_stars(pattern, name)
        assert pieces[0] + "".join(text + piece for text, piece in zip(texts, pieces[1:], strict=True)) == name


def test_a_title_says_what_the_stars_of_its_metric_stand_for() -> None:
    declared = [
        Metric(name="tasks.*.flips", title="flips on *", unit="share", better="lower"),
        Metric(name="tasks.*.*", title="score on * (*)", unit="score", better="neither"),
        Metric(name="plain.*", unit="score", better="neither"),
    ]
    titles = {name: find_metric(name, declared) for name in ("tasks.a_b.flips", "tasks.a.b.c", "plain.x", "other")}
    assert [found and found.title for found in titles.values()] == ["flips on a_b", "score on a (b.c)", "", None]


def test_slices_are_asked_for_by_the_pattern_as_it_stands() -> None:
    rule = AtMost(metric="a.[b]*", limit=1.0, why="w", slices="kind=x")
    gate = GateSpec(name="g", source="g", rules=(RuleSpec(rule=rule, where="g:1"),))
    assert slice_patterns([gate]) == {"kind": ("a.[b]*",)}
