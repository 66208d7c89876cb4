"""Contamination: detects documents that share their text, or a long run of tokens, with known documents.

The convention of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C): 13-grams, compared without case, blanks and
punctuation. The units here are tokens instead of words, so that it also works for scripts without blanks.
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
"""Length of a run of tokens that two texts are unlikely to share by chance."""

_NOTHING = -1


class DocumentIndex:
    """An index of known documents that counts how many token windows of another document occur in them.

    A document with fewer than ``WINDOW`` content tokens is compared as a whole with whole documents.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, documents: Iterable[NDArray[np.int64]]) -> None:
        self._tokenizer: Any = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._number: dict[str, int] = {}
        self._known: dict[int, int] = {}
        texts = [self._normal(ids) for ids in documents]
        self._whole = {text.tobytes() for text in texts}
        self._windows = {window for text in texts for window in _windows(text)}

    def content_ids(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The ids without special tokens."""
        return ids[~np.isin(ids, list(self._special))]

    def count_shared(self, ids: NDArray[np.int64]) -> tuple[int, int]:
        """Number of windows of a document that occur in the index, and of all its windows (1 for a short document)."""
        text = self._normal(ids)
        if len(text) < WINDOW:
            return int(len(text) > 0 and text.tobytes() in self._whole), 1
        windows = _windows(text)
        return sum(window in self._windows for window in windows), len(windows)

    def _normal(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """A number for each content token; equal for tokens that differ only in case, blanks or punctuation."""
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
            kept = f"id {index}"  # A fragment of a character has no text of its own, so its id is used.
        return self._number.setdefault(kept, len(self._number)) if kept else _NOTHING


def _windows(text: NDArray[np.int32]) -> list[bytes]:
    if len(text) < WINDOW:
        return []
    rows = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(text, WINDOW))
    windows: list[bytes] = rows.view(f"V{rows.itemsize * WINDOW}").ravel().tolist()
    return windows
