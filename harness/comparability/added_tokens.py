"""The part ``added_tokens``: tokens that are found in a text before anything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from harness.comparability import Part
from harness.comparability._common.examples import common_strings
from harness.comparability._common.pipeline import differing, encode, pipelines, shorten, show_value
from harness.comparability._common.sides import Json, Sides, make_tokenizer, without_truncation
from harness.errors import ModelError
from harness.records import Difference

Token = Mapping[str, object]


class AddedTokens(Part):
    """Tokens that are found in a text before anything else: special ones, markers of a chat."""

    title: ClassVar[str] = "the tokenizer's added tokens"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        both = pipelines(sides)
        if both is None or both[0].get("added_tokens") == both[1].get("added_tokens"):
            return
        ours, theirs = (_by_content(each) for each in both)
        common = list(common_strings(sides.reference))
        for content in sorted(ours.keys() | theirs.keys()):
            one, other = ours.get(content), theirs.get(content)
            if one != other:
                yield _difference(sides, both[0], content, (one, other), common)


def _by_content(pipeline: Json) -> dict[str, Token]:
    tokens = pipeline.get("added_tokens")
    listed = [token for token in tokens if isinstance(token, Mapping)] if isinstance(tokens, list) else []
    return {str(token.get("content")): token for token in listed}


def _difference(
    sides: Sides, pipeline: Json, content: str, tokens: tuple[Token | None, Token | None], common: list[str]
) -> Difference:
    one, other = tokens
    used = next((text for text in common if content and content in text), "")
    flagged = one is not None and other is not None and one.get("special") != other.get("special")
    # transformers makes a token that has a role special, whatever its entry says.
    has_role = all(content in side.special_tokens.values() for side in (sides.reference, sides.variant))
    changes = _changes_ids(sides, pipeline, content, other)
    if flagged and has_role:
        meaning = "programs that follow tokenizer.json alone show it in answers of one side"
    elif flagged:
        meaning = "one side shows it in answers, the other leaves it out as a special token"
    elif changes:
        meaning = "texts that contain it become other tokens"
    else:
        meaning = "written otherwise; a text that contains it becomes the same tokens"
    at_once = (flagged and not has_role) or bool(changes and used)
    return Difference(
        part="added_tokens",
        field=shorten(content),
        reference=_show(one, other),
        variant=_show(other, one),
        meaning=meaning,
        severity="at_once" if at_once else "beyond_inputs" if changes or flagged else "informative",
        example=shorten(used or content),
    )


def _show(token: Token | None, beside: Token | None) -> str:
    """What of the token is not so in the one beside it; its id, if that one does not exist."""
    if token is None:
        return "none"
    if beside is None:
        return f"id {token.get('id')}"
    return show_value({key: value for key, value in token.items() if value != beside.get(key)})


def _changes_ids(sides: Sides, pipeline: Json, content: str, theirs: Token | None) -> bool:
    """Whether a text that contains the token is encoded otherwise with the variant's entry for it."""
    others = [token for token in pipeline.get("added_tokens") or () if token.get("content") != content]
    mixed = {**pipeline, "added_tokens": [*others, *([theirs] if theirs else ())]}
    name = f"the reference's tokenizer.json with an added token of {sides.variant.name}"
    try:
        one, other = (without_truncation(make_tokenizer(each, name)) for each in (pipeline, mixed))
    except ModelError:
        return True
    return bool(differing(one, other, [content, f"a{content}b", f"a {content} b"], encode))
