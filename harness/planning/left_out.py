"""Rules that are not applied, because gate and suites agree that their measure may be missing.

A gate names the measures that a suite may leave out (``optional: [tasks]``), and a suite names those that it leaves
out on purpose (``without: [tasks]``). Only where both do, and nothing measures them, a rule is not applied; a measure
that was merely forgotten stays a mistake of the plan. What is not gated is said with the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import plugins
from harness.measures import Measure
from harness.planning.checking import Checker
from harness.planning.specs import GateSpec, RuleSpec, SuiteSpec
from harness.plugins import nearest
from harness.records import Note
from harness.records.patterns import could_match
from harness.system.yaml_values import KeyPath, describe

TOPIC = "not gated"
"""The topic of the notes about rules that are not applied."""


@dataclass(frozen=True)
class LeftOut:
    """What the suites of a plan leave out. suites: for each measure, those that say so. measured: names (or patterns)
    of the metrics that some suite yields all the same."""

    suites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    measured: Sequence[str] = ()

    @classmethod
    def of_suites(cls, suites: Iterable[SuiteSpec]) -> LeftOut:
        """What the suites of a plan leave out."""
        suites = tuple(suites)
        metrics = [metric.name for suite in suites for measure in suite.measures for metric in measure.produces()]
        return cls(_by_measure((suite.name, suite.without) for suite in suites), metrics)

    @classmethod
    def of_run(cls, asked: Mapping[str, Any], metrics: Sequence[str]) -> LeftOut:
        """What the suites of a finished run left out. asked: its plan as plain data; metrics: the names it declares."""
        suites = [suite for suite in asked.get("suites") or () if isinstance(suite, Mapping)]
        named = ((str(suite.get("name")), suite.get("without") or ()) for suite in suites)
        return cls(_by_measure((name, [str(each) for each in without]) for name, without in named), metrics)

    def measure_of(self, pattern: str, optional: Sequence[str]) -> str:
        """The measure whose absence excuses a rule on this metric; empty if the rule must be applied."""
        if any(could_match(pattern, name) for name in self.measured):
            return ""
        return next(
            (kind for kind in optional if kind in self.suites and _yields(kind, pattern)),
            "",
        )

    def mark(self, gate: GateSpec) -> GateSpec:
        """The gate, with every rule marked that is not applied."""
        rules = tuple(self._mark(spec, gate.optional) for spec in gate.rules)
        return gate.model_copy(update={"rules": rules})

    def _mark(self, spec: RuleSpec, optional: Sequence[str]) -> RuleSpec:
        kind = self.measure_of(spec.rule.metric, optional)
        return spec.model_copy(update={"left_out": kind}) if kind else spec


def read_measure_names(check: Checker, value: Any, key: str) -> tuple[str, ...]:
    """The measures that a suite (``without``) or a gate (``optional``) names. Notes problems."""
    if value is None:
        return ()
    path: KeyPath = (key,)
    known = plugins.names(Measure)
    named = []
    for index, kind in enumerate(check.entries(value, path, "names of measures")):
        if isinstance(kind, str) and kind in known:
            named.append(kind)
            continue
        close = nearest(kind, known) if isinstance(kind, str) else ""
        hint = f"did you mean {close}?" if close else ""
        check.problem(
            (*path, index), repr(kind) if isinstance(kind, str) else describe(kind), f"one of {', '.join(known)}", hint
        )
    return tuple(dict.fromkeys(named))


def note_left_out(gates: Iterable[GateSpec], suites: Mapping[str, tuple[str, ...]]) -> tuple[Note, ...]:
    """One warning for each gate and measure whose rules are not applied. suites: see `LeftOut`."""
    return tuple(
        Note(topic=TOPIC, text=_explain(gate, kind, suites.get(kind, ())), level="warn")
        for gate in gates
        for kind in dict.fromkeys(spec.left_out for spec in gate.rules if spec.left_out)
    )


def _explain(gate: GateSpec, kind: str, suites: Sequence[str]) -> str:
    metrics = [spec.rule.metric for spec in gate.rules if spec.left_out == kind]
    count = f"{len(metrics)} rule{'s' * (len(metrics) > 1)} of the gate {gate.name}"
    says = f"the suite {' and '.join(suites)} measures none (without: [{kind}])"
    applied = f"{'are' if len(metrics) > 1 else 'is'} not applied ({', '.join(metrics)})"
    return f"no {kind} {'are' if kind.endswith('s') else 'is'} gated here: {says}, so {count} {applied}"


def _by_measure(suites: Iterable[tuple[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name, without in suites:
        for kind in without:
            found[kind] = (*found.get(kind, ()), name)
    return found


def _yields(kind: str, pattern: str) -> bool:
    """Whether a measure could yield a metric of this name, with some settings."""
    metrics = plugins.load(Measure, kind).metrics
    return any(could_match(pattern, metric.name) for metric in metrics) or could_match(pattern, f"{kind}.*")
