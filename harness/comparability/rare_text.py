"""The part ``rare_text``: tokens of text that a suite may well hold none of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from harness.comparability import Part
from harness.comparability._common.examples import RARE
from harness.comparability._common.sides import Sides
from harness.comparability.common_text import compare_ids
from harness.records import Difference


class RareText(Part):
    """Tokens of runs of blanks, accents, emoji, other scripts and markers of chats, as users of each side get them."""

    title: ClassVar[str] = "the tokens of rare text"
    is_effect: ClassVar[bool] = True

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        found = compare_ids(sides, RARE)
        if found is not None:
            yield found.model_copy(update={"part": self.kind, "field": "rare text", "severity": "beyond_inputs"})
