"""The part ``padding``: how texts of a batch are filled up to one length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from harness.comparability import Part
from harness.comparability._common.pipeline import pipelines, show_value
from harness.comparability._common.sides import Sides
from harness.records import Difference


class Padding(Part):
    """How texts of a batch are filled up to one length: token and side."""

    title: ClassVar[str] = "the padding of batches"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        stated = {"pad_token": [side.special_tokens.get("pad_token") for side in (sides.reference, sides.variant)]}
        stated["padding_side"] = [side.settings.get("padding_side") for side in (sides.reference, sides.variant)]
        both = pipelines(sides)
        if both is not None:
            stated["padding"] = [each.get("padding") for each in both]
        for field, (ours, theirs) in stated.items():
            if ours != theirs:
                yield Difference(
                    part=self.kind,
                    field=field,
                    reference=show_value(ours),
                    variant=show_value(theirs),
                    meaning="texts of different lengths in one batch are filled up differently; each alone is the same",
                    severity="informative",
                )
