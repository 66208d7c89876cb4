"""Variants of one reference side by side: what they cost, what they lose, which are dominated, and which to take."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.records import Measurement, Run
from harness.report import words
from harness.report.summaries.glance import worst_task


@dataclass(frozen=True)
class Variant:
    """One finished run. folder: where its files lie; link: from the overview to its report, if that was written."""

    run: Run
    folder: Path
    link: str = ""

    @property
    def bytes(self) -> int | None:
        """Bytes of the stored weights; None where they are not known."""
        measured = self.find("memory.weight_bytes")
        stored = measured.variant if measured else sum(module.stored_bytes for module in self.run.variant.modules)
        return round(stored) if stored else None

    @property
    def size(self) -> float | None:
        """Bytes of the stored weights as a share of the reference's."""
        measured = self.find("memory.weight_bytes")
        if measured and measured.reference and measured.variant:
            return measured.variant / measured.reference
        whole = sum(module.stored_bytes for module in self.run.reference.modules)
        return self.bytes / whole if whole and self.bytes else None

    @property
    def bits(self) -> float | None:
        """Stored bits per weight, everything included."""
        return words.bits_per_weight(self.run.variant.modules)

    @property
    def task(self) -> Measurement | None:
        """The task that loses most; None without tasks."""
        return worst_task(self.run)

    def find(self, name: str) -> Measurement | None:
        """The finite measurement of that name, of the first suite that has it."""
        found = (m for m in self.run.measurements if m.name == name and m.non_finite is None)
        return next(found, None)

    def change(self, name: str) -> float | None:
        """The compared value of a metric."""
        found = self.find(name)
        return found.change if found else None


@dataclass(frozen=True)
class Group:
    """Variants that were measured against one reference on the same documents, so that their numbers compare.

    quality: the metric by which losses are compared: the first that is declared a summary of quality and that every
    variant has; empty if there is none.
    """

    variants: tuple[Variant, ...]

    @property
    def quality(self) -> str:
        """Name of the metric of the vertical axis."""
        names = words.list_summaries(self.variants[0].run, "quality")
        return next((name for name in names if all(each.change(name) is not None for each in self.variants)), "")

    @property
    def axes(self) -> list[str]:
        """Every axis of the matrices that the variants come from."""
        return list(dict.fromkeys(axis for each in self.variants for axis in each.run.asked.get("choice", {})))


@dataclass(frozen=True)
class Cost:
    """What a variant costs. value: of one variant, lower is better; None where it was not measured."""

    name: str
    title: str
    unit: str
    value: Callable[[Variant], float | None]


def _peak(variant: Variant) -> float | None:
    measured = variant.find("memory.peak_bytes")
    return measured.variant if measured else None


COSTS = (
    Cost("size", "stored weights", "bytes", lambda variant: variant.bytes),
    Cost("latency", "time, variant over reference", "ratio", lambda variant: variant.change("latency.ratio")),
    Cost("memory", "peak memory", "bytes", _peak),
)


@dataclass(frozen=True)
class Point:
    """A variant on the plane of cost and loss. dominated_by: one that costs and loses no more, and one of them less."""

    variant: Variant
    cost: float
    loss: float
    dominated_by: str = ""


def group_variants(variants: Iterable[Variant]) -> list[Group]:
    """Variants by reference and suites, in order of first appearance."""
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(_comparable_key(variant.run), []).append(variant)
    return [Group(tuple(each)) for each in groups.values()]


def _comparable_key(run: Run) -> str:
    suites = [{key: each.get(key) for key in ("name", "documents")} for each in run.asked.get("suites", ())]
    content: list[Any] = [run.reference.weights_sha256, run.reference.tokenizer_sha256, run.reference.dtype, suites]
    return json.dumps(content, sort_keys=True)


def find_frontier(group: Group, cost: Cost) -> list[Point]:
    """Every variant with both numbers, cheapest first, each with the variant that dominates it.

    Dominance compares the point estimates exactly; of several dominating variants the one that loses least is named,
    then the cheapest.
    """
    name = group.quality
    if not name:
        return []
    sign = -1 if group.variants[0].run.metric(name).better == "higher" else 1
    placed = [(each, cost.value(each), each.change(name)) for each in group.variants]
    plain = [Point(each, x, sign * y) for each, x, y in placed if x is not None and y is not None]
    points = sorted(plain, key=lambda point: (point.cost, point.loss, point.variant.run.name))
    return [Point(each.variant, each.cost, each.loss, _find_dominating(each, points)) for each in points]


def _find_dominating(point: Point, points: Sequence[Point]) -> str:
    better = [
        each
        for each in points
        if each.cost <= point.cost and each.loss <= point.loss and (each.cost, each.loss) != (point.cost, point.loss)
    ]
    best = min(better, key=lambda each: (each.loss, each.cost, each.variant.run.name), default=None)
    return best.variant.run.name if best else ""


def recommend(group: Group) -> Variant | None:
    """The smallest variant that passes, of equal ones that which loses least; None where none passes."""
    name = group.quality
    passing = [each for each in group.variants if each.run.verdict == "pass" and each.bytes is not None]
    if not passing:
        return None
    sign = -1 if name and group.variants[0].run.metric(name).better == "higher" else 1
    return min(passing, key=lambda each: (each.bytes, sign * (each.change(name) or 0.0) if name else 0, each.run.name))


def select_smallest(passed: Sequence[Run]) -> str:
    """The name of the smallest of runs that pass, as `recommend` has it; empty where none has a known size."""
    best = recommend(Group(tuple(Variant(run, Path()) for run in passed))) if passed else None
    return best.run.name if best else ""
