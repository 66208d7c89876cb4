"""The part ``decoder``: how tokens are joined to a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from harness.comparability import NotComparable, Part
from harness.comparability._common.examples import RARE, common_strings
from harness.comparability._common.pipeline import compare_piece, decode, shorten, show_value
from harness.comparability._common.sides import Sides
from harness.records import Difference

CLEAN_UP = "clean_up_tokenization_spaces"


class Decoder(Part):
    """How tokens are joined to the text that a user reads."""

    title: ClassVar[str] = "the tokenizer's decoder"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare: by tokenizer.json; by what the loaded tokenizers do where a side has none."""
        both = (sides.reference, sides.variant)
        if sides.same_pipeline or all(side.pipeline is not None for side in both):
            yield from compare_piece(sides, self.kind, "the same tokens read as another text", decode)
        else:
            if any(side.header is not None for side in both):
                raise NotComparable("the engine of a model in a single file joins tokens by rules of its own")
            yield from _compare_loaded(sides)
        clean = [bool(side.settings.get(CLEAN_UP)) for side in both]
        if clean[0] != clean[1]:
            yield _compare_clean_up(sides, clean)


def _compare_loaded(sides: Sides) -> Iterator[Difference]:
    """The first text that the tokens of the reference read as on one side only."""
    if sides.same_tokenizer:
        return
    common = _differing(sides, [*common_strings(sides.reference)])
    if changed := common or _differing(sides, RARE):
        text, ours, theirs = changed[0]
        yield Difference(
            part="decoder",
            field="decoder",
            reference=show_value(ours),
            variant=show_value(theirs),
            meaning="the same tokens read as another text",
            severity="at_once" if common else "beyond_inputs",
            example=shorten(text),
            count=len(changed),
        )


def _compare_clean_up(sides: Sides, clean: list[bool]) -> Difference:
    """Blanks before punctuation are removed on one side only, as far as the installed library does what is asked."""
    changed = _differing(sides, [*common_strings(sides.reference), *RARE])
    return Difference(
        part="decoder",
        field=CLEAN_UP,
        reference=show_value(clean[0]),
        variant=show_value(clean[1]),
        meaning=(
            "one side removes blanks before punctuation from every answer"
            if changed
            else "the installed transformers ignores it for these tokenizers; others remove blanks before punctuation"
        ),
        severity="at_once" if changed else "beyond_inputs",
        example=shorten(changed[0][0]) if changed else "",
        count=max(1, len(changed)),
    )


def _differing(sides: Sides, texts: Sequence[str]) -> list[tuple[str, str, str]]:
    """The texts whose tokens, those of the reference, are read differently, and as what."""
    found = []
    for text, ids in zip(texts, sides.encode(sides.reference, texts), strict=True):
        ours, theirs = (sides.decode(side, ids) for side in (sides.reference, sides.variant))
        if ours != theirs:
            found.append((text, ours, theirs))
    return found
