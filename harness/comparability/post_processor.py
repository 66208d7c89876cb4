"""The part ``post_processor``: which special tokens a tokenizer adds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from harness.comparability import Part
from harness.comparability._common.pipeline import compare_piece
from harness.comparability._common.sides import Sides
from harness.records import Difference


class PostProcessor(Part):
    """Which special tokens a tokenizer adds to every text: the start token, say."""

    title: ClassVar[str] = "the tokenizer's post-processor"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        yield from compare_piece(
            sides,
            self.kind,
            "prompts get other special tokens: one side reads a start token, say, and the other does not",
        )
