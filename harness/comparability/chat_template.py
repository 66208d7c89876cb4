"""The part ``chat_template``: what conversations look like to the model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import ClassVar

from harness.comparability import Part
from harness.comparability._common.examples import CONVERSATIONS, Conversation, render
from harness.comparability._common.pipeline import shorten, show_value
from harness.comparability._common.sides import Sides
from harness.records import Difference


class ChatTemplate(Part):
    """What conversations look like to the model, rendered: system prompts, tools, several turns, thinking."""

    title: ClassVar[str] = "the chat template"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        ours, theirs = sides.reference.chat_templates, sides.variant.chat_templates
        for name in sorted(ours.keys() | theirs.keys()):
            one, other = ours.get(name), theirs.get(name)
            if one is None or other is None:
                yield _missing(name, one, other)
            elif one != other or sides.reference.special_tokens != sides.variant.special_tokens:
                yield from _compare_rendered(sides, name, one, other)


def _missing(name: str, one: str | None, other: str | None) -> Difference:
    side = "reference" if one is None else "variant"
    return Difference(
        part="chat_template",
        field=name,
        reference=show_value(one and _first_line(one)),
        variant=show_value(other and _first_line(other)),
        meaning=f"the {side} has no such template, so programs refuse to chat with it, or make up a format",
        severity="at_once",
    )


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "an empty text")


def _compare_rendered(sides: Sides, name: str, one: str, other: str) -> Iterator[Difference]:
    differing = [found for found in (_compare(sides, one, other, each) for each in CONVERSATIONS) if found]
    if differing:
        conversation, line, ours, theirs = differing[0]
        yield Difference(
            part="chat_template",
            field=name,
            reference=show_value(ours),
            variant=show_value(theirs),
            meaning=f"line {line} of {conversation.name} is rendered differently: the model reads another prompt",
            severity="at_once",
            example=conversation.name,
            count=len(differing),
        )
    elif one != other:
        yield Difference(
            part="chat_template",
            field=name,
            reference=show_value(_first_line(one)),
            variant=show_value(_first_line(other)),
            meaning=f"written otherwise; {len(CONVERSATIONS)} conversations are rendered alike",
            severity="informative",
        )


def _compare(
    sides: Sides, one: str, other: str, conversation: Conversation
) -> tuple[Conversation, int, str, str] | None:
    """The first line that differs, counted from 1, on both sides; None if nothing does."""
    ours, refused = render(sides.reference, one, conversation)
    theirs, refused_too = render(sides.variant, other, conversation)
    if refused and refused_too:
        return None
    if refused or refused_too:
        return conversation, 1, f"refused: {refused}" if refused else ours, refused_too and f"refused: {refused_too}"
    lines = zip_longest(ours.split("\n"), theirs.split("\n"))
    for number, (left, right) in enumerate(lines, 1):
        if left != right:
            return conversation, number, shorten(left or "(ends)"), shorten(right or "(ends)")
    return None
