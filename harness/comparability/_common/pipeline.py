"""One part of tokenizer.json put in the place of another: which texts it encodes or decodes differently."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness.comparability import NotComparable
from harness.comparability._common.examples import RARE, common_strings
from harness.comparability._common.sides import Json, Side, Sides, make_tokenizer, without_truncation
from harness.errors import ModelError
from harness.records import Difference
from harness.records.comparison import Severity
from harness.system.foreign import guard

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHOWN = 60
"""Characters of a value or an example that are shown."""
Output = Callable[["Tokenizer", Sequence[str]], list[Any]]


def pipelines(sides: Sides) -> tuple[Json, Json] | None:
    """tokenizer.json of both sides; None where both tokenizers come from the same files.

    Raises NotComparable where a side has none: what its tokenizer does is compared as a whole (see ``common_text``).
    """
    if sides.same_pipeline:
        return None
    found = []
    for side in (sides.reference, sides.variant):
        if side.pipeline is None:
            raise NotComparable(f"{side.name} has no tokenizer.json, so only what its tokenizer does can be compared")
        found.append(side.pipeline)
    return found[0], found[1]


def compare_piece(sides: Sides, key: str, meaning: str, output: Output | None = None) -> Iterator[Difference]:
    """The difference of one part of tokenizer.json, if there is one; its severity by the texts that it changes.

    The variant's part is put into the reference's tokenizer, so that no other part has a share in what is seen.
    """
    both = pipelines(sides)
    if both is None or both[0].get(key) == both[1].get(key):
        return
    ours, theirs = both
    severity, example, count, note = _effect(sides, ours, {**ours, key: theirs.get(key)}, output or encode)
    yield Difference(
        part=key,
        field=key,
        reference=show_value(ours.get(key)),
        variant=show_value(theirs.get(key)),
        meaning=note or meaning,
        severity=severity,
        example=example,
        count=count,
    )


def _effect(sides: Sides, ours: Json, mixed: Json, output: Output) -> tuple[Severity, str, int, str]:
    """Severity, first example, number of examples, and a remark in place of the meaning."""
    name = f"the reference's tokenizer.json with a part of {sides.variant.name}"
    try:
        one, other = (without_truncation(make_tokenizer(each, name)) for each in (ours, mixed))
    except ModelError:
        return "at_once", "", 1, "the two parts belong to tokenizers that cannot be mixed"
    common = list(common_strings(sides.reference))
    if found := differing(one, other, common, output):
        return "at_once", found[0], len(found), ""
    if found := differing(one, other, RARE, output):
        return "beyond_inputs", found[0], len(found), ""
    return "informative", "", 1, f"written otherwise; none of {len(common) + len(RARE)} example texts differs"


def differing(one: Tokenizer, other: Tokenizer, texts: Sequence[str], output: Output) -> list[str]:
    """The texts whose output differs, shortened."""
    with guard("comparing two tokenizers"):
        pairs = zip(texts, output(one, texts), output(other, texts), strict=True)
        return [shorten(text) for text, left, right in pairs if left != right]


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Any]:
    """Token ids, with the special tokens that are added by default."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def decode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Any]:
    """The texts that the tokens of texts read as, without special tokens and with them."""
    return [
        [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False)] for ids in encode(tokenizer, texts)
    ]


def show_value(value: object) -> str:
    """A value of a JSON file on one line, shortened."""
    if value is None:
        return "none"
    return shorten(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True))


def shorten(text: str, most: int = SHOWN) -> str:
    """A text that is cut, and says so."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def vocabulary(side: Side) -> dict[str, int]:
    """Ids by token of tokenizer.json, without added tokens."""
    model = (side.pipeline or {}).get("model")
    table = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(table, dict):
        return {str(token): number for token, number in table.items() if isinstance(number, int)}
    listed = table if isinstance(table, list) else []
    return {str(entry[0]): at for at, entry in enumerate(listed) if isinstance(entry, list) and entry}
