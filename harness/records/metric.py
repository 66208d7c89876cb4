"""What is known of a metric before anything is measured. A measure declares its metrics; nobody else keeps a table."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import Annotated, Literal

from pydantic import Field

from harness.errors import FailureClass
from harness.records.base import Record
from harness.records.patterns import match_stars, matches

Better = Literal["lower", "higher", "neither"]
SpreadFamily = Literal["mean", "log", "relative", "paired", "share", "counted", "none", "unknown"]
ChanceLevel = Literal[
    "", "ln_v", "ln_v_over_perplexity", "v_over_perplexity", "one_in_v", "guess", "guess_flips", "guess_losses"
]
Summary = Literal["", "quality", "speed"]


class Metric(Record):
    """A metric that a measure declares.

    name: with ``*`` where a task name or the like goes. title: in words, for reports; each of its ``*`` is what the
    same ``*`` of the name stands for. neutral: the value of ``change`` when the variant equals the reference: 0 for
    differences and divergences, 1 for ratios and agreement. infinite_neutral: ``neutral`` stands for infinity (an SQNR
    without error), so that no distance from it means anything. units: what the independent observations behind it are.
    sides: whether it has a value on each side, too.

    spread and spread_size: its assumed variation between documents, from which ``harness plan`` computes power without
    an earlier run. ``mean`` a standard deviation, ``log`` that of the logarithm, ``relative`` that as a multiple of the
    degradation, ``paired`` the share of items that only one side gets right, ``share`` a binomial share (its size is
    the share expected; 0: half of what is allowed), ``counted`` none, ``none`` no interval, ``unknown`` nothing is
    assumed. Sizes were seen on 4-bit variants of small and large models, and rounded up, so that the documents needed
    come out too many rather than too few.

    chance: its value for a trivial model (uniform over the vocabulary, or guessing among choices), by which ``harness
    lint`` names limits that such a model passes. With V the size of the vocabulary: ``ln_v`` nats,
    ``ln_v_over_perplexity`` ln(V / perplexity of the reference), ``v_over_perplexity`` the same without ln,
    ``one_in_v`` 1/V, ``guess`` the score of guessing among the choices of a task, ``guess_flips`` and
    ``guess_losses`` the answers that guessing changes or loses; empty: unknown.
    summary: the answer of the report's checklist that lists it; ``quality`` is shown at a glance as well.
    concern: the class of failure of a rule on this metric that does not pass.
    """

    name: str
    unit: str
    better: Better
    neutral: float = 0.0
    infinite_neutral: bool = False
    title: str = ""
    description: str = ""
    units: str = "documents"
    sides: bool = False
    spread: SpreadFamily = "unknown"
    spread_size: Annotated[float, Field(ge=0)] = 0.0
    chance: ChanceLevel = ""
    summary: Summary = ""
    concern: FailureClass = "quality"


def find_metric(name: str, declared: Iterable[Metric]) -> Metric | None:
    """The first declaration whose name covers ``name``, under that name; None where there is none."""
    found = next((metric for metric in declared if matches(metric.name, name)), None)
    if found is None or "*" not in found.name:
        return found
    pieces = found.title.split("*")
    words = zip_longest(pieces, match_stars(found.name, name)[: len(pieces) - 1], fillvalue="")
    return found.model_copy(update={"name": name, "title": "".join(map("".join, words))})
