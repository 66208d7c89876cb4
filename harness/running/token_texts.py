"""The text of every token id that a suite's token table names, so that reports need no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.tables.access import Sink

UNIT = "token_texts/0"
NOT_TEXT = "\ufffd"
"""What decoders write for bytes that are no whole character."""


def store_token_texts(sink: Sink, tokenizer: PreTrainedTokenizerBase) -> None:
    """Commit the table ``token_texts`` (id, text) of all targets and most likely tokens, unless it is there already."""
    import numpy as np
    import pandas as pd

    if sink.done(UNIT):
        return
    found = sink.read("tokens", ("target", "reference_top1", "variant_top1"))
    if found is None:
        return
    ids = np.unique(found.to_numpy(dtype=np.int32))
    texts = spell_tokens(tokenizer, ids.tolist())
    sink.commit(UNIT, {"token_texts": pd.DataFrame({"id": ids, "text": pd.Series(texts, dtype="str")})})


def spell_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each id as it reads inside a text; "" for an id without one, or if the tokenizer cannot decode.

    A token that is no whole character is given as its bytes ("\\xe2\\x80"), or as the vocabulary spells it ("<0xE2>").
    """
    known = len(tokenizer)
    try:
        return [_spell(tokenizer, number) if 0 <= number < known else "" for number in ids]
    except Exception:  # Tokenizers are files and code of others; texts are for readers, and no number depends on them.
        return [""] * len(ids)


def _spell(tokenizer: PreTrainedTokenizerBase, number: int) -> str:
    # Decoders drop a blank at the beginning of a text, which the second of two tokens keeps.
    once, twice = (_decode(tokenizer, [number] * count) for count in (1, 2))
    text = twice[len(once) :] if twice.startswith(once) else once
    if NOT_TEXT not in text:
        return text
    raw = str(tokenizer.convert_ids_to_tokens(number))
    places = _list_byte_letters()
    if not all(letter in places for letter in raw):
        return raw
    return bytes(places[letter] for letter in raw).decode("utf-8", "backslashreplace")


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _list_byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: printable bytes are themselves, the others the
    letters from U+0100 on, in order (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}
