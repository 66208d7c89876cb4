"""Power analysis: the sample size that each rule of a plan needs, and whether the plan provides it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.forecast.boundary import Boundary, facts_of, find_boundary
from harness.forecast.causes import Cause, Outlook
from harness.forecast.measured import Measured
from harness.forecast.spread import Earlier, Spread, assume_spread, read_spread
from harness.planning.specs import GateSpec, RuleSpec
from harness.records.patterns import could_match
from harness.rules import Rule, bound_of
from harness.statistics.power import (
    TARGET,
    closest_limit,
    documents_needed,
    mean_power,
    paired_power,
    share_power,
)


@dataclass(frozen=True)
class Need:
    """One rule on one metric: the sample size it needs for the power TARGET, the planned one, and the outlook.

    closest: the smallest distance from "no degradation" to a limit that the planned sample can decide. detail: the
    rule's own explanation, if it does not fit the metric.
    """

    gate: str
    spec: RuleSpec
    measured: Measured
    cause: Cause
    needed: int | None = None
    power: float | None = None
    closest: float | None = None
    spread: Spread | None = None
    boundary: Boundary | None = None
    detail: str = ""

    @property
    def rule(self) -> Rule:
        """The rule itself."""
        return self.spec.rule

    @property
    def metric(self) -> str:
        """The name of the metric."""
        return self.measured.metric.name

    @property
    def units(self) -> str:
        """What the sample consists of."""
        return self.measured.metric.units

    @property
    def documents(self) -> int | None:
        """The size of the sample."""
        return self.measured.documents

    @property
    def outlook(self) -> Outlook:
        """Whether the rule will decide."""
        return self.cause.outlook

    @property
    def said(self) -> str:
        """The outlook in a sentence."""
        return self.cause.words(self.metric, self.units, self.documents, self.needed, self.power, self.detail)

    @property
    def basis(self) -> str:
        """The basis of the numbers, in words; empty if there is none."""
        if (
            (self.power is None and self.cause is not Cause.UNKNOWN_SIZE)
            or self.spread is None
            or self.boundary is None
        ):
            return ""
        if self.boundary.subject == "variant":
            return f"between-document SD of the variant's own value {self.spread.own or 0:.3g}, {self.spread.source}"
        return self.spread.words()


def needs(gates: Iterable[GateSpec], metrics: Sequence[Measured], run: Earlier | None = None) -> list[Need]:
    """One need for each rule and each metric that it matches, in the order of the gates.

    run: an earlier comparable run; its variances are used if available, else those that the metric declares.
    """
    return [
        _need(gate.name, spec, each, run)
        for gate in gates
        for spec in gate.rules
        for each in metrics
        if could_match(spec.rule.metric, each.metric.name)
    ]


def _need(gate: str, spec: RuleSpec, each: Measured, run: Earlier | None) -> Need:
    spread = (read_spread(run, each.metric) if run else None) or assume_spread(each.metric)
    if "*" in each.metric.name:
        return Need(gate, spec, each, Cause.UNKNOWN_NAMES, spread=spread)
    boundary = find_boundary(spec.rule, each.metric, spread)
    draft = Need(gate, spec, each, Cause.POWERED, spread=spread, boundary=boundary)
    least = spec.rule.min_documents
    if least is not None and each.documents and each.documents < least:
        return replace(draft, cause=Cause.MIN_DOCUMENTS, needed=least)
    if boundary is None:
        detail = bound_of(spec.rule, facts_of(each.metric, spread)).misfit
        return replace(draft, cause=Cause.MISFIT if detail else Cause.IMPOSSIBLE, detail=detail)
    cause = _find_power_obstacle(boundary, spread)
    return _compute_power(draft, boundary, spread) if cause is None else replace(draft, cause=cause)


def _find_power_obstacle(found: Boundary, spread: Spread) -> Cause | None:
    """Why the sample size does not matter, or cannot be determined; None if a power can be computed."""
    if found.subject == "number" and spread.family != "counted":
        return Cause.POINT
    if spread.family == "counted":
        return Cause.COUNTED
    if spread.family == "none":
        return Cause.MAYBE_NO_INTERVAL if spread.source == "assumed" else Cause.NO_INTERVAL
    if found.limit is None:
        return Cause.NO_LIMIT
    if found.subject == "variant" and (spread.reference is None or spread.own is None):
        return Cause.UNKNOWN_VALUE
    if not found.reference_passes and found.subject == "change":
        return Cause.UNCHANGED_FAILS
    return Cause.UNKNOWN_VARIANCE if spread.family == "unknown" else None


def _compute_power(draft: Need, found: Boundary, spread: Spread) -> Need:
    """The need with its numbers, by the power of the interval that the rule uses."""
    reach = _reach(found, spread)
    if reach <= 0:
        return replace(draft, cause=Cause.REFERENCE_FAILS, power=0.0)

    def power(documents: int, distance: float = reach) -> float:
        return _power(found, spread, distance, documents)

    documents, needed = draft.documents, documents_needed(power)
    if documents is None:
        return replace(draft, cause=Cause.UNKNOWN_SIZE, needed=needed)
    numbers = replace(draft, needed=needed, power=power(documents))
    if documents < 2:
        return replace(numbers, cause=Cause.NO_SAMPLE)
    if power(documents) >= TARGET:
        return numbers
    closest = closest_limit(lambda distance: _power(found, spread, distance, documents), 100 * reach)
    cause = Cause.UNDERPOWERED if _can_pass(found, spread, reach, documents) else Cause.TOO_FEW
    return replace(numbers, cause=cause, closest=closest)


def _reach(found: Boundary, spread: Spread) -> float:
    """Distance of the nearest limit from "no degradation", in the units in which the interval is symmetric."""
    return min(_reach_of(limit, found, spread) for limit in found.limits)


def _reach_of(limit: float, found: Boundary, spread: Spread) -> float:
    neutral = found.neutral
    if found.subject == "change" and spread.family == "log":
        return abs(math.log(limit / neutral)) if limit > 0 and neutral > 0 else abs(limit - neutral)
    # Where the rule looks at the variant's own value, the reference is where an undamaged variant would be.
    return abs(limit - neutral) if found.reference_passes else -abs(limit - neutral)


def _power(found: Boundary, spread: Spread, reach: float, documents: int) -> float:
    """Power for a variant without degradation; for metrics that are 0 without degradation, for half of what is
    allowed."""
    if found.subject == "variant":
        return mean_power(reach, spread.own or 0.0, documents)
    if spread.family == "paired":
        return paired_power(reach, spread.size, documents) if reach < 1 else 1.0
    if spread.family == "share":
        return share_power(min(reach, 1.0), spread.size or min(reach, 1.0) / 2, documents)
    if spread.family == "relative":
        return mean_power(reach / 2, spread.size * reach / 2, documents)
    return mean_power(reach, spread.size, documents)


def _can_pass(found: Boundary, spread: Spread, reach: float, documents: int) -> bool:
    """Whether the best possible result, no change at all, would pass."""
    if found.subject == "change" and spread.family == "paired":
        return paired_power(min(reach, 0.999), 0.0, documents) > 0
    if found.subject == "change" and spread.family == "share":
        return share_power(min(reach, 1.0), 0.0, documents) > 0
    return documents >= 2
