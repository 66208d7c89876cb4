"""Reads gate files, and checks that each rule has a measured metric that it can judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from harness.errors import Problem
from harness.measures import Measure, load_measures, load_metrics
from harness.planning.checking import Checker
from harness.planning.files import GateFile
from harness.planning.left_out import LeftOut, read_measure_names
from harness.planning.locating import check_description, check_file_name, find_file
from harness.planning.specs import GateSpec, RuleSpec
from harness.plugins import nearest
from harness.records import Metric, Sequential
from harness.records.patterns import could_match
from harness.rules import Facts, Rule, bound_of
from harness.rules._conditions import explain_misfit
from harness.system.yaml_file import read_yaml
from harness.system.yaml_values import KeyPath, describe


@dataclass(frozen=True)
class Gate:
    """The valid part of a gate file. rules: by their position in the file; complete: whether all of them are valid."""

    name: str
    source: str
    rules: dict[int, Rule]
    complete: bool
    check: Checker
    sequential: Sequential | None = None
    optional: tuple[str, ...] = ()

    def only_warns(self, left_out: LeftOut) -> bool:
        """Whether all rules that are applied are advisory, so that the gate cannot block anything."""
        applied = (rule for rule in self.rules.values() if not left_out.measure_of(rule.metric, self.optional))
        return all(rule.level == "warn" for rule in applied)

    def spec(self) -> GateSpec:
        """The record, for a file without mistakes."""
        where = self.check.where
        rules = tuple(RuleSpec(rule=rule, where=where(("rules", i))) for i, rule in self.rules.items())
        return GateSpec(
            name=self.name, source=self.source, sequential=self.sequential, optional=self.optional, rules=rules
        )


def read_gate(name: str, base: Path, problems: list[Problem]) -> Gate | None:
    """Read a bundled gate, or one at a path under ``base``, and note its problems; None if it cannot be read."""
    path, shown = find_file("gates", name, base)
    source = read_yaml(path, problems, shown)
    if source is None:
        return None
    check = Checker(source, path.parent, problems)
    check_file_name(check, path)
    content = check.mapping(source.data, (), tuple(GateFile.model_fields))
    check_description(check, content)
    given = check.entries(content.get("rules"), ("rules",), "rules")
    rules: dict[int, Rule] = {}
    for index, entry in enumerate(given):
        rule = check.plugin(Rule, entry, ("rules", index))
        if rule is not None:
            rules[index] = rule
    sequential = _sequential(check, content.get("sequential"))
    optional = read_measure_names(check, content.get("optional"), "optional")
    return Gate(path.stem, shown, rules, bool(given) and len(rules) == len(given), check, sequential, optional)


def _sequential(check: Checker, value: Any) -> Sequential | None:
    """The method of intervals for interim looks; None: the default."""
    known = get_args(Sequential)
    if value is None or value in known:
        return cast("Sequential | None", value)
    close = nearest(value, known) if isinstance(value, str) else ""
    hint = f"did you mean {close}?" if close else ""
    check.problem(("sequential",), describe(value), f"one of {', '.join(known)}, or no such key", hint)
    return None


def check_extending(gates: Sequence[Gate], growing: Sequence[str], measured: Sequence[Metric]) -> None:
    """Note rules that extend a sample that no suite can extend, and gates with different ``sequential`` methods.

    growing: the metrics of suites with sequential sampling (``min``). measured: the metrics of all suites.
    """
    for gate in gates:
        for index, rule in gate.rules.items():
            if rule.on_inconclusive != "extend" or any(could_match(rule.metric, name) for name in growing):
                continue
            if not any(could_match(rule.metric, metric.name) for metric in measured):
                continue  # check_metrics reports that nothing measures it
            found = f"extend, but no suite can measure more documents for {rule.metric}"
            expected = "a suite that measures it by token or layer, with documents: {min: …, max: …}"
            hint = "give the suite for example min: 40 and max: 400, or write on_inconclusive: block"
            gate.check.problem(("rules", index, "on_inconclusive"), found, expected, hint)
    named = [gate for gate in gates if gate.sequential]
    for gate in named[1:]:
        if gate.sequential != named[0].sequential:
            found = f"{gate.sequential}, and {named[0].sequential} in {named[0].source}"
            gate.check.problem(
                ("sequential",), found, "the same method in all gates, because each number has one interval"
            )


def check_metrics(gate: Gate, metrics: Sequence[Metric], all_known: bool, left_out: LeftOut | None = None) -> None:
    """Note every rule whose metric is not among ``metrics``, unless gate and suites leave it out on purpose.

    all_known: whether ``metrics`` is everything that will be measured. If some measures could not be read, only names
    close to one that some measure can yield are noted, so that nothing correct is reported. A rule that cannot judge
    its metric (a margin of 200 % on a share) is noted too.
    """
    measured, left_out = [metric.name for metric in metrics], left_out or LeftOut()
    possible = measured if all_known else [*measured, *(metric.name for metric in load_metrics())]
    for index, rule in gate.rules.items():
        path: KeyPath = ("rules", index)
        known = any(could_match(rule.metric, name) for name in possible)
        known = known or bool(left_out.measure_of(rule.metric, gate.optional))
        if not known and (all_known or nearest(rule.metric, [n for n in possible if n[-1:] != "*"])):
            expected = "a metric that the suites measure"
            gate.check.problem(
                (*path, "metric"), repr(rule.metric), expected, _suggest_metric(rule, measured, gate.optional)
            )
        for metric in metrics:
            if could_match(rule.metric, metric.name) and (why := _explain_misfit(rule, metric)):
                gate.check.problem(path, f"{rule.kind} for {metric.name}", "a rule that fits the metric", why)


def check_obstacles(gate: Gate, measures: Sequence[Measure]) -> None:
    """Note every blocking rule on a metric that is known beforehand not to be measurable."""
    for index, rule in gate.rules.items():
        for measure in measures:
            named = [metric.name for metric in measure.produces() if could_match(rule.metric, metric.name)]
            if named and rule.level == "block" and (why := measure.obstacle()):
                found = f"{rule.metric!r}, which cannot be measured"
                gate.check.problem(("rules", index, "metric"), found, "a metric that can be measured", why)


def _explain_misfit(rule: Rule, metric: Metric) -> str:
    """Why the rule cannot judge this metric; empty if it can."""
    if "*" in metric.name:
        return ""  # unit and direction are known only when it is measured
    facts = Facts.from_metric(metric)
    return bound_of(rule, facts).misfit or explain_misfit(rule, facts)


def _suggest_metric(rule: Rule, measured: Sequence[str], optional: Sequence[str]) -> str:
    """What to write or add if a rule names a metric that no suite measures."""
    for measure, metrics in load_measures():
        if any(could_match(rule.metric, metric.name) for metric in metrics):
            kind = metrics[0].name.removesuffix(".*") if measure is None else measure.kind
            leave = f", or write without: [{kind}] in it to ship without them" if kind in optional else ""
            return f"the measure {kind} provides it; add {kind} to a suite{leave}"
    if close := nearest(rule.metric, measured):
        return f"did you mean {close}?"
    return f"the suites measure {', '.join(measured) or 'no metrics at all'}"
