"""The part ``normalizer``: what a tokenizer makes of characters before it cuts a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from harness.comparability import Part
from harness.comparability._common.pipeline import compare_piece
from harness.comparability._common.sides import Sides
from harness.records import Difference


class Normalizer(Part):
    """What a tokenizer does to characters before it cuts a text (Unicode forms, case, blanks)."""

    title: ClassVar[str] = "the tokenizer's normalizer"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        yield from compare_piece(sides, self.kind, "texts become other tokens")
