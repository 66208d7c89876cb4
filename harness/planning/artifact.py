"""Checks the key ``variant.artifact`` against the variant, the measures and the gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.planning.checking import Checker
from harness.planning.gate_file import Gate
from harness.planning.specs import VariantSpec
from harness.planning.suite_file import Suite
from harness.records.patterns import could_match
from harness.system.yaml_values import KeyPath

PATH: KeyPath = ("variant", "artifact")


def check_artifact(
    check: Checker,
    value: Any,
    variant: VariantSpec | None,
    suites: Sequence[Suite | None],
    gates: Sequence[Gate | None],
) -> None:
    """Add a problem if ``artifact`` has no effect or omits what a gate requires. value: the raw variant."""
    if variant is None or not isinstance(value, Mapping):
        return
    known = [suite for suite in suites if suite]
    measured = _artifact_metrics(known)
    if "artifact" in value and not variant.made_here:
        found = f"{variant.artifact}, but the variant is not changed: the files that are loaded are the artifact"
        check.problem(PATH, found, "no such key without steps")
    elif value.get("artifact") == "save" and not measured and all(s and s.complete for s in suites):
        found = "save, but no suite measures the artifact"
        check.problem(PATH, found, "a suite with the measure artifact", "add artifact to the measures of a suite")
    elif variant.artifact == "none" and variant.made_here:
        for gate in gates:
            if gate and (patterns := _blocking_patterns(gate, measured)):
                found = f"none, and the gate {gate.name} has blocking rules on {', '.join(patterns)}"
                hint = (
                    "no variant may be released without being reloaded; for a simulation use a gate without these rules"
                )
                check.problem(PATH, found, "save", hint)


def _artifact_metrics(suites: Sequence[Suite]) -> list[str]:
    """Names of the metrics that are measured on the artifact."""
    return [
        metric.name
        for suite in suites
        for measure in suite.measures.values()
        if any(probe.runs == "artifact" and probe.kind == measure.table for probe in suite.probes)
        for metric in measure.produces()
    ]


def _blocking_patterns(gate: Gate, metrics: Sequence[str]) -> list[str]:
    """The patterns of blocking rules of a gate that match some of the metrics."""
    blocking = [rule.metric for rule in gate.rules.values() if rule.level == "block"]
    return [pattern for pattern in dict.fromkeys(blocking) if any(could_match(pattern, name) for name in metrics)]
