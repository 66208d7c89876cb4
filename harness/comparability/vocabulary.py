"""The part ``vocabulary``: which tokens there are, their ids, and how texts are merged into them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from harness.comparability import Part
from harness.comparability._common.pipeline import compare_piece, pipelines
from harness.comparability._common.sides import Sides
from harness.records import Difference


class Vocabulary(Part):
    """Which tokens a tokenizer has, their ids, and by which merges or scores it chooses them."""

    title: ClassVar[str] = "the tokenizer's vocabulary"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        if pipelines(sides) is None:
            return
        for found in compare_piece(sides, "model", "texts become other tokens"):
            sizes = [f"{_size(side.pipeline)} tokens" for side in (sides.reference, sides.variant)]
            yield found.model_copy(update={"part": self.kind, "reference": sizes[0], "variant": sizes[1]})


def _size(pipeline: object) -> int:
    model = pipeline.get("model") if isinstance(pipeline, dict) else None
    table = model.get("vocab") if isinstance(model, dict) else None
    return len(table) if isinstance(table, dict | list) else 0
