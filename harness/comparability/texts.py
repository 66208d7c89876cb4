"""The part ``texts``: tokens of the suite's own texts, as users of each side get them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from harness.comparability import Part
from harness.comparability._common.sides import Sides
from harness.comparability.common_text import compare_ids, require_own_tokenizers
from harness.records import Difference


class Texts(Part):
    """Tokens of the suite's texts as users of each side get them, with the special tokens that are added by default."""

    title: ClassVar[str] = "the tokens of the suite's texts"
    is_effect: ClassVar[bool] = True

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare; nothing outside a run."""
        require_own_tokenizers(sides)
        if not sides.texts:
            return
        found = compare_ids(sides, sides.texts)
        if found is not None:
            yield found.model_copy(update={"part": self.kind, "field": "documents of the suite"})
