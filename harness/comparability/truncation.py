"""The part ``truncation``: after how many tokens a tokenizer cuts a text by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from harness.comparability import NotComparable, Part
from harness.comparability._common.pipeline import pipelines, show_value
from harness.comparability._common.sides import Json, Sides
from harness.records import Difference

UNLIMITED = 10**9
"""A model_max_length above this stands for none."""


class Truncation(Part):
    """After how many tokens a tokenizer cuts a text, or warns of its length."""

    title: ClassVar[str] = "the truncation of long texts"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        if any(side.header is not None for side in (sides.reference, sides.variant)):
            raise NotComparable("a model in a single file does not say after how many tokens its tokenizer cuts")
        longest = [_limit(side.settings.get("model_max_length")) for side in (sides.reference, sides.variant)]
        if longest[0] != longest[1]:
            yield _difference("model_max_length", longest, longest)
        both = pipelines(sides)
        if both is not None and both[0].get("truncation") != both[1].get("truncation"):
            stated = [each.get("truncation") for each in both]
            yield _difference("truncation", stated, [_max_length(each) for each in both])


def _difference(field: str, stated: list[object] | list[int | None], limits: list[int | None]) -> Difference:
    least = min((limit for limit in limits if limit is not None), default=None)
    return Difference(
        part="truncation",
        field=field,
        reference=show_value(stated[0]),
        variant=show_value(stated[1]),
        meaning="programs that follow it cut longer texts on one side only, or at another place",
        severity="beyond_inputs",
        from_position=least,
    )


def _limit(value: object) -> int | None:
    return value if isinstance(value, int) and 0 <= value < UNLIMITED else None


def _max_length(pipeline: Json) -> int | None:
    stated = pipeline.get("truncation")
    return _limit(stated.get("max_length")) if isinstance(stated, dict) else None
