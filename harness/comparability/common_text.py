"""The part ``common_text``: tokens of everyday text, as users of each side get them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from harness.comparability import NotComparable, Part
from harness.comparability._common.examples import common_strings
from harness.comparability._common.pipeline import shorten
from harness.comparability._common.sides import Sides
from harness.records import Difference

FIRST = 8
"""How many token ids are shown."""


class CommonText(Part):
    """Tokens of everyday text and of chats, as users of each side get them: whatever causes it, this is the effect."""

    title: ClassVar[str] = "the tokens of common text"
    is_effect: ClassVar[bool] = True

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        found = compare_ids(sides, list(dict.fromkeys(common_strings(sides.reference))))
        if found is not None:
            yield found.model_copy(update={"part": self.kind, "field": "everyday text"})


def compare_ids(sides: Sides, texts: Sequence[str]) -> Difference | None:
    """The difference of the ids of texts; None if all are the same.

    Raises NotComparable where a side is measured with the other's tokenizer although its users get its own.
    """
    require_own_tokenizers(sides)
    if sides.same_ids:
        return None
    ours, theirs = (sides.encode(side, texts) for side in (sides.reference, sides.variant))
    differing = [at for at, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other]
    if not differing:
        return None
    first = differing[0]
    at = next((i for i, (a, b) in enumerate(zip(ours[first], theirs[first], strict=False)) if a != b), None)
    start = max(0, (min(len(ours[first]), len(theirs[first])) if at is None else at) - 1)
    return Difference(
        part="common_text",
        field="ids",
        reference=_show_ids(ours[first], start),
        variant=_show_ids(theirs[first], start),
        meaning=f"{len(differing)} of {len(texts)} texts become other tokens, so each side reads something else",
        severity="at_once",
        example=shorten(texts[first]),
        count=len(differing),
    )


def require_own_tokenizers(sides: Sides) -> None:
    """Raise NotComparable where a side borrows a tokenizer that its users do not get."""
    for side in (sides.reference, sides.variant):
        if side.borrowed:
            raise NotComparable(
                f"{side.name} is measured with the other side's tokenizer (tokenizer: reference); its users get the "
                "one in its file"
            )


def _show_ids(ids: Sequence[int], start: int) -> str:
    shown = " ".join(map(str, ids[start : start + FIRST]))
    return f"{'… ' if start else ''}{shown}{' …' if len(ids) > start + FIRST else ''}"
