"""The part ``decoder``: how tokens are joined to a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from harness.comparability import Part
from harness.comparability._pipeline import compare_piece, decode
from harness.comparability._sides import Sides
from harness.records import Difference


class Decoder(Part):
    """How tokens are joined to the text that a user reads."""

    title: ClassVar[str] = "the tokenizer's decoder"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        yield from compare_piece(sides, self.kind, "the same tokens read as another text", decode)
