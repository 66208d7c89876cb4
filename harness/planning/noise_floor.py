"""The key ``noise_floor`` of a suite, and rules that ask to be above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from harness.measures import Measure
from harness.planning.checking import Checker
from harness.planning.gate_file import Gate, could_match
from harness.plugins import nearest
from harness.probes import PassProbe
from harness.records import Condition, Metric, NoiseFloorSpec, Plugin, SuiteSpec
from harness.strict_yaml.values import KeyPath, describe

if TYPE_CHECKING:
    from harness.planning.suite_file import Suite

KEY = "noise_floor"
CONDITIONS: tuple[str, ...] = get_args(Condition)
REMEDY = f"add noise_floor: [{', '.join(CONDITIONS)}] to the suite, or remove above_noise"


def read_noise_floor(check: Checker, value: Any, probes: Mapping[str, Plugin]) -> NoiseFloorSpec | None:
    """A list of conditions, or a mapping with ``conditions`` and ``documents``; None and problems if it is wrong."""
    path: KeyPath = (KEY, "conditions") if isinstance(value, Mapping) else (KEY,)
    given = value.get("conditions") if isinstance(value, Mapping) else value
    entries = check.entries(given, path, f"conditions ({', '.join(CONDITIONS)})")
    for index, entry in enumerate(entries):
        if not (isinstance(entry, str) and entry in CONDITIONS):
            close = nearest(entry, CONDITIONS) if isinstance(entry, str) else ""
            hint = f"did you mean {close}?" if close else ""
            check.problem((*path, index), describe(entry), f"one of {', '.join(CONDITIONS)}", hint)
        elif entry in entries[:index]:
            check.problem((*path, index), f"{entry} again", "each condition once")
    if not any(isinstance(probe, PassProbe) for probe in probes.values()):
        wanted = "a measure of documents that both models read, such as divergence"
        check.problem((KEY,), "a noise floor, and nothing that it could be measured of", wanted)
    good = {entry for entry in entries if isinstance(entry, str) and entry in CONDITIONS}
    if not good or len(good) < len(entries):
        return None
    return check.record(NoiseFloorSpec, value if isinstance(value, Mapping) else {"conditions": value}, (KEY,))


def without_floor(suite: Suite | SuiteSpec, measure: Measure, metric: Metric) -> str:
    """Why no run of a suite will know the noise floor of a metric, and what to do; empty if it will."""
    if metric.name in measure.own_floors:
        return ""
    if not any(probe.kind == measure.table and isinstance(probe, PassProbe) for probe in suite.probes):
        return f"the measure {measure.kind} has none; remove above_noise, or judge a metric by token or layer"
    if metric.unit == "dB":
        return "decibels have none, as equal sides have no finite value; write it for layers.relative_error"
    return REMEDY if suite.noise_floor is None else ""


def check_floors(gate: Gate, suites: Sequence[Suite]) -> None:
    """Note every rule that asks to be above a noise floor which will not be measured."""
    for index, rule in gate.rules.items():
        matched = [
            (suite, measure, metric)
            for suite in suites
            for measure in suite.measures.values()
            for metric in measure.produces()
            if rule.above_noise is not None and could_match(rule.metric, metric.name)
        ]
        for suite, measure, metric in matched:
            if remedy := without_floor(suite, measure, metric):
                found = f"above_noise for {metric.name}, of which the suite {suite.name} measures no noise floor"
                gate.check.problem(("rules", index, "above_noise"), found, "a metric with a noise floor", remedy)
