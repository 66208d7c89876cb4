"""Whether a document was seen before: the same text, or a long run of the same tokens.

The convention of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C): runs of 13 in a row, compared without case,
blanks and punctuation. Here the units are tokens instead of words, so that scripts without blanks count too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW = 13
"""Tokens in a row that two texts hardly share by chance."""

_NOTHING = -1


class Seen:
    """The texts of a set of documents, to be asked how much of another document is among them.

    A document of fewer than ``WINDOW`` tokens that count is compared whole, with whole documents.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, documents: Iterable[NDArray[np.int64]]) -> None:
        self._tokenizer: Any = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._number: dict[str, int] = {}
        self._known: dict[int, int] = {}
        texts = [self._normal(ids) for ids in documents]
        self._whole = {text.tobytes() for text in texts}
        self._windows = {window for text in texts for window in _windows(text)}

    def words(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The ids without special tokens."""
        return ids[~np.isin(ids, list(self._special))]

    def shared(self, ids: NDArray[np.int64]) -> tuple[int, int]:
        """How many windows of a document were seen, and how many it has; 0 or 1 of 1 for a short document."""
        text = self._normal(ids)
        if len(text) < WINDOW:
            return int(len(text) > 0 and text.tobytes() in self._whole), 1
        windows = _windows(text)
        return sum(window in self._windows for window in windows), len(windows)

    def _normal(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """A number for each token that counts; equal for tokens that differ in case, blanks or punctuation only."""
        unknown = [index for index in dict.fromkeys(ids.tolist()) if index not in self._known]
        texts = self._tokenizer.batch_decode([[index] for index in unknown]) if unknown else []
        for index, text in zip(unknown, texts, strict=True):
            self._known[index] = _NOTHING if index in self._special else self._class_of(index, text)
        numbers = np.array([self._known[index] for index in ids.tolist()], dtype=np.int32)
        kept: NDArray[np.int32] = numbers[numbers != _NOTHING]
        return kept

    def _class_of(self, index: int, text: str) -> int:
        folded = unicodedata.normalize("NFKC", text).casefold()
        kept = "".join(character for character in folded if unicodedata.category(character)[0] in "LMNS")
        if "\ufffd" in text:
            kept = f"id {index}"  # A piece of a character has no text of its own; only its id says what it is.
        return self._number.setdefault(kept, len(self._number)) if kept else _NOTHING


def _windows(text: NDArray[np.int32]) -> list[bytes]:
    if len(text) < WINDOW:
        return []
    rows = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(text, WINDOW))
    found: list[bytes] = rows.view(f"V{rows.itemsize * WINDOW}").ravel().tolist()
    return found
