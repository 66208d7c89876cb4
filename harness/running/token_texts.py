"""The text of every token id that a suite's token table names, so that reports need no tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from harness.system.foreign import contain

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from harness.tables.access import Sink

NOT_TEXT = "\ufffd"
"""What decoders write for bytes that are no whole character."""


@dataclass
class WithTokenTexts:
    """A sink that adds to every unit with the table ``tokens`` a table ``token_texts`` of its targets and most likely
    tokens.

    Columns: id; text, as in `spell_tokens`; bytes, in hexadecimal, of a token that is no whole character, else "".
    Units may repeat ids: each is complete by itself.
    """

    sink: Sink
    tokenizer: PreTrainedTokenizerBase
    known: dict[int, tuple[str, str]] = field(default_factory=dict)

    def done(self, unit: str) -> bool:
        """See Sink.done."""
        return self.sink.done(unit)

    def commit(
        self, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame] | None = None
    ) -> None:
        """Commit the unit with the texts of its tokens."""
        if (tokens := frames.get("tokens")) is not None:
            frames = {**frames, "token_texts": self._spell(tokens)}
        self.sink.commit(unit, frames, snapshots)

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """See Sink.read."""
        return self.sink.read(table, columns)

    def read_parts(self, table: str) -> Iterator[pd.DataFrame]:
        """See Sink.read_parts."""
        return self.sink.read_parts(table)

    def _spell(self, tokens: pd.DataFrame) -> pd.DataFrame:
        import numpy as np
        import pandas as pd

        columns = ["target", "reference_top1", "variant_top1"]
        ids = np.unique(tokens[columns].to_numpy(dtype=np.int32))
        unknown = [number for number in ids.tolist() if number not in self.known]
        self.known |= dict(zip(unknown, spell_tokens(self.tokenizer, unknown), strict=True))
        texts, parts = (pd.Series([self.known[n][at] for n in ids.tolist()], dtype="str") for at in (0, 1))
        return pd.DataFrame({"id": ids, "text": texts, "bytes": parts})


def spell_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[str, str]]:
    """The text of each id as it reads inside a text, and the bytes of those that are no whole character.

    The text of such a token is its bytes ("\\xe2\\x80"), or what the vocabulary says; an id without a token, or that
    the tokenizer cannot decode, has the text "".
    """
    known = len(tokenizer)
    return [_spell(tokenizer, number) if 0 <= number < known else ("", "") for number in ids]


def _spell(tokenizer: PreTrainedTokenizerBase, number: int) -> tuple[str, str]:
    try:
        with contain("the tokenizer"):
            # Decoders drop a blank at the beginning of a text, which the second of two tokens keeps.
            once, twice = (_decode(tokenizer, [number] * count) for count in (1, 2))
            text = twice[len(once) :] if twice.startswith(once) else once
            raw = str(tokenizer.convert_ids_to_tokens(number)) if NOT_TEXT in text else ""
    except Exception:  # noqa: BLE001 - code of others, which may raise anything; no number depends on texts
        return "", ""
    if not raw:
        return text, ""
    content = _read_bytes(raw)
    return (raw, "") if content is None else (content.decode("utf-8", "backslashreplace"), content.hex())


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _read_bytes(token: str) -> bytes | None:
    """The bytes that a vocabulary writes as "<0xE2>" (SentencePiece) or in letters (byte-level BPE); None if it
    does neither."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    places = _list_byte_letters()
    return bytes(places[letter] for letter in token) if all(letter in places for letter in token) else None


@cache
def _list_byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: printable bytes are themselves, the others the
    letters from U+0100 on, in order (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}
