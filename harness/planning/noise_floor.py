"""Checks that the suites measure the noise floors that rules with ``above_noise`` need."""

from __future__ import annotations

from collections.abc import Sequence

from harness.measures import Measure
from harness.planning.gate_file import Gate
from harness.planning.specs import SuiteSpec
from harness.planning.suite_file import CONDITIONS, Suite
from harness.records import Metric
from harness.records.patterns import could_match

REMEDY = f"add noise_floor: [{', '.join(CONDITIONS)}] to the suite, or remove above_noise"


def explain_missing_floor(suite: Suite | SuiteSpec, measure: Measure, metric: Metric) -> str:
    """Why no run of a suite will measure the noise floor of a metric, and what to do; empty if it will."""
    if metric.name in measure.own_floors:
        return ""
    if not any(probe.kind == measure.table and probe.runs == "shared_pass" for probe in suite.probes):
        return f"the measure {measure.kind} has no noise floor; remove above_noise, or judge a metric by token or layer"
    if metric.infinite_neutral:
        return f"{metric.name} is infinite if both sides are equal; use above_noise on layers.relative_error"
    return REMEDY if suite.noise_floor is None else ""


def check_floors(gate: Gate, suites: Sequence[Suite]) -> None:
    """Note every rule with ``above_noise`` on a metric whose noise floor will not be measured."""
    for index, rule in gate.rules.items():
        matched = [
            (suite, measure, metric)
            for suite in suites
            for measure in suite.measures.values()
            for metric in measure.produces()
            if rule.above_noise is not None and could_match(rule.metric, metric.name)
        ]
        for suite, measure, metric in matched:
            if remedy := explain_missing_floor(suite, measure, metric):
                found = f"above_noise for {metric.name}, whose noise floor the suite {suite.name} does not measure"
                gate.check.problem(("rules", index, "above_noise"), found, "a metric with a noise floor", remedy)
