"""The part ``loaded_tokenizer``: whether transformers makes of the tokenizer files what tokenizer.json says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from harness.comparability import Part
from harness.comparability._common.examples import COMMON, RARE
from harness.comparability._common.pipeline import shorten
from harness.comparability._common.sides import Side, Sides, without_truncation
from harness.errors import ModelError
from harness.records import Difference
from harness.system.foreign import guard


class LoadedTokenizer(Part):
    """Whether the tokenizer that transformers loads encodes as its tokenizer.json does."""

    title: ClassVar[str] = "the loaded tokenizer"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        if sides.same_ids or not sides.as_loaded:
            return
        both = (sides.reference, sides.variant)
        found = {side.name: _departure(side) for side in both}
        examples = [found[side.name] for side in both]
        if (examples[0] is None) == (examples[1] is None):
            return
        at = 0 if examples[0] is not None else 1
        said = ["as tokenizer.json says", "as tokenizer.json says"]
        said[at] = f"otherwise than tokenizer.json says (tokenizer_class {both[at].settings.get('tokenizer_class')})"
        yield Difference(
            part=self.kind,
            field="tokenizer_class",
            reference=said[0],
            variant=said[1],
            meaning=(
                f"transformers does not load the pipeline of tokenizer.json of {both[at].name} but rebuilds it from "
                "its class; name the class in tokenizer_config.json with which tokenizer.json was made"
            ),
            severity="at_once",
            example=shorten(examples[at] or ""),
        )


def _departure(side: Side) -> str | None:
    """The first text that tokenizer.json encodes differently; None if there is none, or no tokenizer.json."""
    if side.pipeline is None:
        return None
    texts = [*COMMON, *RARE]
    expected = [e.ids for e in without_truncation(side.fast).encode_batch(texts, add_special_tokens=False)]
    try:
        with guard(f"the tokenizer of {side.name}"):
            found = [list(side.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    except Exception as error:  # Tokenizers are files and code of others.
        raise ModelError(f"{side.name}: its tokenizer fails: {type(error).__name__}: {error}") from error
    return next((text for text, one, other in zip(texts, expected, found, strict=True) if one != other), None)
