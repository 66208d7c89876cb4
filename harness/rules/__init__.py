"""Rules judge one measurement. One file is one rule; its fields are its YAML.

The judge handles what concerns every rule (a missing metric, a non-finite one, one that must not be judged,
``min_documents``, ``implausible_gain``, ``slices``, ``on_inconclusive``), so a rule sees only finite measurements.
Decisions are three-valued: pass only if the whole interval is on the good side of the limit, fail only if it is
wholly on the bad side, inconclusive otherwise, ties included.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from harness.records import Level, Measurement, Plugin
from harness.records.patterns import LONGEST

Basis = Literal["interval", "point"]


@dataclass(frozen=True)
class Decision:
    """What a rule says: status, both sides of the comparison in words, the margin left, and the reason."""

    status: Literal["pass", "fail", "inconclusive", "error"]
    expected: str
    found: str
    margin: float | None
    because: str
    p_value: float | None = None
    """One-sided p-value of "beyond the limit" where an interval decided; None where nothing was sampled."""


class Rule(Plugin):
    """One requirement on one metric (or on all metrics that a pattern with ``*`` matches)."""

    family = "rules"

    metric: str = Field(min_length=1, max_length=LONGEST, description="name of the metric, or a pattern with *")
    why: str = Field(min_length=1, description="why this limit: a sentence for the reader of the report")
    level: Level = Field(default="block", description="block: decides the verdict; warn: only shown")
    decide: Basis = Field(
        default="interval", description="interval: the whole interval is on the good side; point: the number alone"
    )
    on_inconclusive: Literal["block", "warn", "extend"] = Field(
        default="block",
        description=(
            "warn: where the interval reaches over the limit, the rule is only shown; extend: more documents are "
            "drawn, as many as the suite may (documents: min and max), and then it blocks"
        ),
    )
    min_documents: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="with fewer documents (items, timing blocks) nothing passes or fails"
    )
    implausible_gain: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="an improvement on the reference beyond this, in units of the change, is an error"
    )
    above_noise: Annotated[float, Field(ge=1)] | None = Field(
        default=None, description="a failure (or implausible gain) below so many noise floors decides nothing"
    )
    slices: str | None = Field(
        default=None,
        pattern=r"^(kind|length|language)(=.+)?$",
        description="kind, length or language: the rule holds on every such part; kind=sum*: on those that match",
    )

    @abstractmethod
    def judge(self, measurement: Measurement, identical: bool) -> Decision:
        """Judge one finite measurement. identical: both sides are the same bytes, so an exact tie may pass."""


BASE = Rule
