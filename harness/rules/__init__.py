"""Rules judge one measurement. One file is one rule; its fields are its YAML, and ``bound`` is all it must say.

The judge handles what concerns every rule (a missing metric, a non-finite one, one that must not be judged,
``min_documents``, ``implausible_gain``, ``slices``, ``on_inconclusive``, ``on_unsupported``), so a rule sees only
finite measurements. Decisions are three-valued: pass only if the whole interval is within the limits, fail only if it
is wholly beyond one of them, inconclusive otherwise, ties included.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from harness.records import Level, Measurement, Plugin
from harness.records.patterns import LONGEST
from harness.rules._bound import NUMBERS, Bound, Facts, Number
from harness.rules._compare import Basis, Decision, compare
from harness.rules._numbers import ComparedNumber, number_of
from harness.system.foreign import contain


class Rule(Plugin):
    """One requirement on one metric (or on all metrics that a pattern with ``*`` matches)."""

    family = "rules"

    metric: str = Field(
        min_length=1,
        max_length=LONGEST,
        description="name of the metric, or a pattern with *",
        examples=["divergence.kl_mean"],
    )
    why: str = Field(
        min_length=1,
        description="why this limit: one sentence for the reader of the report",
        examples=["above this, answers differ visibly"],
    )
    level: Level = Field(default="block", description="block: decides the verdict of the run; warn: advisory only")
    decide: Basis = Field(
        default="interval",
        description="interval: the whole interval must be within the limit; point: only the point estimate must",
    )
    on_inconclusive: Literal["block", "warn", "extend"] = Field(
        default="block",
        description=(
            "where the interval crosses the limit: block; warn: advisory only; extend: draw more documents, up to the "
            "max of the suite (which needs documents: {min, max}), then block"
        ),
    )
    on_unsupported: Literal["block", "warn"] = Field(
        default="block",
        description=(
            "where the variant's engine, one of its steps or its kind of files shows nothing to measure: block; warn: "
            "advisory only, and said"
        ),
    )
    min_documents: Annotated[int, Field(ge=2, examples=[50])] | None = Field(
        default=None, description="with fewer documents (items, timing blocks) the rule is inconclusive"
    )
    implausible_gain: Annotated[float, Field(gt=0, examples=[0.1])] | None = Field(
        default=None, description="a larger improvement over the reference, in units of the change, is an error"
    )
    above_noise: Annotated[float, Field(ge=1, examples=[3.0])] | None = Field(
        default=None, description="a failure (or implausible gain) below this many noise floors is inconclusive"
    )
    slices: str | None = Field(
        default=None,
        pattern=r"^(kind|length|language)(=.+)?$",
        description="kind, length or language: the rule must hold on every such slice; kind=sum*: on those that match",
        examples=["kind"],
    )

    @abstractmethod
    def bound(self, metric: Facts) -> Bound:
        """The limits of this rule on a metric, or why it cannot judge the metric.

        Asked before anything is measured (``plan``, ``lint``), by the judge, and for the drawing in the report.
        """

    def judge(self, measurement: Measurement, identical: bool) -> Decision:
        """Judge one finite measurement. identical: both sides are the same bytes, so an exact tie may pass."""
        return compare(measurement, self.bound(Facts.from_measurement(measurement)), self.decide, identical)


def bound_of(rule: Rule, metric: Facts) -> Bound:
    """The bound of a rule; of one that breaks on the metric, a misfit that says so."""
    name = rule.kind or type(rule).__name__
    try:
        with contain(f"the rule {name}"):
            bound: object = rule.bound(metric)
    except Exception as error:  # noqa: BLE001 - one broken rule must not end a plan or a report
        broken = f"the rule {name} broke on {metric.name}: {type(error).__name__}: {error}"
        return Bound("a rule that works", misfit=broken)
    if isinstance(bound, Bound):
        return bound
    return Bound("a rule that works", misfit=f"the rule {name} returned {bound!r} for {metric.name}, expected a Bound")


BASE = Rule

__all__ = [
    "BASE",
    "NUMBERS",
    "Basis",
    "Bound",
    "ComparedNumber",
    "Decision",
    "Facts",
    "Number",
    "Rule",
    "bound_of",
    "compare",
    "number_of",
]
