"""Comparison of what users of two models load: configuration, stop tokens, chat template, tokenizer. One file is one
part.

    folder ─▶ Side ─┐
    folder ─▶ Side ─┴▶ Sides ─▶ every part ─▶ differences ─▶ Comparison

Reads JSON and templates, no weights. A part reads what both sides ship, and yields one Difference for each thing that a
user could notice, with its severity.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from harness import plugins
from harness.comparability._common.header import Header
from harness.comparability._common.sides import Side, Sides, read_side
from harness.records import Comparison, Difference, Omission, Plugin
from harness.records.comparison import Basis

__all__ = [
    "BASE",
    "Header",
    "NotComparable",
    "Part",
    "Side",
    "Sides",
    "assume_same",
    "compare_sides",
    "load_parts",
    "read_side",
]


class NotComparable(Exception):  # noqa: N818 - not an error: one side has no such part
    """A part exists in a form that cannot be compared; the message says why."""


class Part(Plugin):
    """Finds the differences of one part."""

    family = "comparability"

    title: ClassVar[str]
    """What it is called in sentences, with its article: "the chat template"."""
    is_effect: ClassVar[bool] = False
    """Whether it shows what differences of other parts do; causes are told first."""

    @abstractmethod
    def compare(self, sides: Sides) -> Iterator[Difference]:
        """Yield every difference.

        Raises NotComparable where a side has no such part, and ModelError for files that cannot be used.
        """


def load_parts() -> list[type[Part]]:
    """Every part, in the order of their names, effects last."""
    return sorted((plugins.load(Part, name) for name in plugins.names(Part)), key=lambda part: part.is_effect)


def compare_sides(sides: Sides, basis: Basis = "folders") -> Comparison:
    """Compare all parts. Raises ModelError for files that cannot be used."""
    parts = {part.kind: part() for part in load_parts()}
    if sides.same_files:
        return Comparison.of(basis, True, parts)
    differences: list[Difference] = []
    omissions: list[Omission] = []
    for kind, part in parts.items():
        try:
            for found in part.compare(sides):  # one by one: what came before an omission stays
                differences.append(found)
        except NotComparable as error:
            omissions.append(Omission(part=kind, reason=str(error)))
    return Comparison.of(basis, False, parts, differences, omissions)


def assume_same(basis: Basis) -> Comparison:
    """The comparison of a variant whose tokenizer and configuration are the reference's own."""
    return Comparison.of(basis, True, [part.kind for part in load_parts()])


BASE = Part
