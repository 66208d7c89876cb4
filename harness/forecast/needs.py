"""What each rule of a plan needs to decide, and whether the plan gives it, before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from harness.forecast.measured import Measured
from harness.forecast.spread import Earlier, Spread, assumed, observed
from harness.forecast.trial import Boundary, boundary, trial_measurement
from harness.planning.specs import GateSpec, RuleSpec
from harness.records.patterns import could_match
from harness.rules import Rule
from harness.statistics.power import (
    TARGET,
    closest_limit,
    documents_needed,
    mean_power,
    paired_power,
    share_power,
)

Outlook = Literal["decides", "weak", "never", "free", "unknown"]


@dataclass(frozen=True)
class Need:
    """One rule on one metric: the documents it needs for the power TARGET, those it has, and what follows.

    outlook: ``decides`` it has enough; ``weak`` too few for the power; ``never`` it cannot pass whatever is found;
    ``free`` it does not rest on a sample; ``unknown`` it cannot be planned. closest: the smallest distance from "no
    damage" to a limit that the documents it has can decide. said: the outlook in words.
    """

    gate: str
    spec: RuleSpec
    metric: str
    outlook: Outlook
    said: str
    units: str = "documents"
    documents: int | None = None
    needed: int | None = None
    power: float | None = None
    closest: float | None = None
    spread: Spread | None = None
    boundary: Boundary | None = None

    @property
    def rule(self) -> Rule:
        """The rule itself."""
        return self.spec.rule

    @property
    def basis(self) -> str:
        """What the numbers rest on, in words; empty where there are none."""
        open_ended = self.outlook == "unknown" and self.needed is not None
        if (self.power is None and not open_ended) or self.spread is None or self.boundary is None:
            return ""
        if self.boundary.subject == "variant":
            return f"standard deviation of the variant's own value {self.spread.own or 0:.3g}, {self.spread.source}"
        return self.spread.words()


def needs(gates: Iterable[GateSpec], metrics: Sequence[Measured], run: Earlier | None = None) -> list[Need]:
    """One need for each rule and each metric that it matches, in the order of the gates.

    run: an earlier run of the like; where it has a number, its variance is used, else what `spread` assumes.
    """
    return [
        _need(gate.name, spec, each, run)
        for gate in gates
        for spec in gate.rules
        for each in metrics
        if could_match(spec.rule.metric, each.metric.name)
    ]


def _need(gate: str, spec: RuleSpec, each: Measured, run: Earlier | None) -> Need:
    rule, name = spec.rule, each.metric.name
    spread = (observed(run, name) if run else None) or assumed(name)
    found = None if "*" in name else boundary(rule, each.metric, spread)

    def need(outlook: Outlook, said: str) -> Need:
        return Need(gate, spec, name, outlook, said, each.units, each.documents, None, None, None, spread, found)

    if "*" in name:
        return need("unknown", "which metrics the task has is known only when it runs; give an earlier run")
    least = rule.min_documents
    if least is not None and each.documents and each.documents < least:
        said = f"it wants at least {least} {each.units} (min_documents), the plan has {each.documents}"
        return replace(need("never", said), needed=least)
    if found is None:
        return need("never", _mistaken(rule, each, spread) or f"no number that {name} can have passes this rule")
    if found.subject == "number" or spread.family == "exact":
        how = "compares the number alone" if found.subject == "number" else "is counted, not sampled"
        return need("free", f"{how}: the number of {each.units or 'documents'} does not matter")
    if spread.family == "none":
        sure = spread.source != "assumed"
        said = f"{name} has no interval, so a rule that decides by interval never passes; write decide: point"
        return need("never" if sure else "unknown", said if sure else f"as far as is known, {said}")
    if found.limit is None:
        return need("unknown", "no limit was found: it passes whatever the number is")
    if found.subject == "variant" and (spread.reference is None or spread.own is None):
        return need("unknown", "it depends on the variant's own value, of which nothing is known without a run")
    if not found.reference_passes and found.subject == "change":
        return need("never", "not even a variant without any change would pass")
    if spread.family == "unknown":
        return need("unknown", f"nothing is known about the variance of {name}; an earlier run would tell")
    return _planned(need("decides", ""), found, spread)


def _mistaken(rule: Rule, each: Measured, spread: Spread) -> str:
    """Why the rule does not fit the metric at all; empty if it does."""
    sample = trial_measurement(each.metric, spread, each.metric.neutral, 0.1, 0.1)
    decision = rule.judge(sample, identical=False)
    return decision.because if decision.status == "error" else ""


def _planned(draft: Need, found: Boundary, spread: Spread) -> Need:
    """The need with its numbers, by the power of the interval that the rule will look at."""
    reach = _reach(found, spread)
    if reach <= 0:
        return _with(draft, "never", "the reference itself does not keep the limit", None, 0.0, None)

    def power(documents: int, distance: float = reach) -> float:
        return _power(found, spread, distance, documents)

    needed = documents_needed(power)
    if draft.documents is None:
        return _with(draft, "unknown", f"needs {_count(needed)} {draft.units}; how many there are is not known", needed)
    strength = power(draft.documents)
    if draft.documents >= 2 and strength < TARGET:
        closest = closest_limit(lambda distance: _power(found, spread, distance, draft.documents or 0), 100 * reach)
        if not _can_pass(found, spread, reach, draft.documents):
            said = f"cannot pass with {draft.documents} {draft.units}, not even without any change; it needs "
            return _with(draft, "never", said + _count(needed), needed, strength, closest)
        said = f"would decide {100 * strength:.0f} times in a hundred with {draft.documents} {draft.units}; 80 need "
        return _with(draft, "weak", said + _count(needed), needed, strength, closest)
    if draft.documents < 2:
        return _with(draft, "never", f"{draft.documents} {draft.units} give no interval", needed, strength)
    said = f"needs {_count(needed)} of {draft.documents} {draft.units}"
    return _with(draft, "decides", said, needed, strength)


def _with(
    draft: Need,
    outlook: Outlook,
    said: str,
    needed: int | None,
    power: float | None = None,
    closest: float | None = None,
) -> Need:
    return replace(draft, outlook=outlook, said=said, needed=needed, power=power, closest=closest)


def _reach(found: Boundary, spread: Spread) -> float:
    """How far the limit is from "no damage", in the units in which the interval is symmetric."""
    neutral, limit = found.neutral, cast(float, found.limit)
    if found.subject == "change" and spread.family == "log":
        return abs(math.log(limit / neutral)) if limit > 0 and neutral > 0 else abs(limit - neutral)
    # Where the rule looks at the variant's own value, the reference is where an undamaged variant would be.
    return abs(limit - neutral) if found.reference_passes else -abs(limit - neutral)


def _power(found: Boundary, spread: Spread, reach: float, documents: int) -> float:
    """Power for a variant without damage; for metrics that are 0 without damage, for half of what is allowed."""
    if found.subject == "variant":
        return mean_power(reach, spread.own or 0.0, documents)
    if spread.family == "paired":
        return paired_power(reach, spread.size, documents) if reach < 1 else 1.0
    if spread.family == "share":
        return share_power(min(reach, 1.0), min(reach, 1.0) / 2, documents)
    if spread.family == "relative":
        return mean_power(reach / 2, spread.size * reach / 2, documents)
    return mean_power(reach, spread.size, documents)


def _can_pass(found: Boundary, spread: Spread, reach: float, documents: int) -> bool:
    """Whether the best that can be found, no change at all, would pass."""
    if found.subject == "change" and spread.family == "paired":
        return paired_power(min(reach, 0.999), 0.0, documents) > 0
    if found.subject == "change" and spread.family == "share":
        return share_power(min(reach, 1.0), 0.0, documents) > 0
    return documents >= 2


def _count(documents: int | None) -> str:
    return "more than there can be" if documents is None else str(documents)
