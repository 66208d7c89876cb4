"""The part ``pre_tokenizer``: where a tokenizer may cut a text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from harness.comparability import Part
from harness.comparability._common.pipeline import compare_piece
from harness.comparability._common.sides import Sides
from harness.records import Difference


class PreTokenizer(Part):
    """Where a tokenizer may cut a text: at blanks, at digits, by a regular expression."""

    title: ClassVar[str] = "the tokenizer's pre-tokenizer"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        yield from compare_piece(sides, self.kind, "texts become other tokens")
