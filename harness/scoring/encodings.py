"""Token ids of texts, each encoded once: choices repeat their context, and both sides mostly read the same tokens."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

Key = tuple[str, bool | None]
"""A text, and whether special tokens are added to it (None: as the tokenizer does by itself)."""
KEPT_TOKENS = 1 << 23
"""Tokens after which nothing more is kept (32 MB)."""
TEXTS = 4096
"""Texts that are encoded in one call."""


class Encodings:
    """The ids that one tokenizer gives to the texts of a task."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[Key, array[int]] = {}
        self._room = KEPT_TOKENS

    def is_same_as(self, other: Encodings) -> bool:
        """Whether both tokenizers are the same data read by the same code of transformers, so that all ids agree."""
        return _describe(self._tokenizer) == _describe(other._tokenizer) is not None

    def forget(self) -> None:
        """Forget all texts."""
        self._known.clear()
        self._room = KEPT_TOKENS

    def fill(self, texts: Iterable[str], settings: dict[str, Any]) -> None:
        """Encode texts together, as keys with None. settings: what the tokenizer is told for each of them."""
        wanted = (text for text in dict.fromkeys(texts) if (text, None) not in self._known)
        while self._room > 0 and (some := list(islice(wanted, TEXTS))):
            for text, ids in zip(some, self._tokenizer(some, verbose=False, **settings)["input_ids"], strict=True):
                self._keep((text, None), ids)

    def get(self, key: Key, encode: Callable[[], list[int]]) -> list[int]:
        """The ids of a text, which ``encode`` gives if they are not known."""
        if (known := self._known.get(key)) is not None:
            return known.tolist()
        self._keep(key, ids := encode())
        return ids

    def _keep(self, key: Key, ids: list[int]) -> None:
        if self._room > 0:
            self._known[key] = array("i", ids)
            self._room -= len(ids)


def _describe(tokenizer: Any) -> tuple[object, ...] | None:
    """What the ids of a text follow from; None: from code that may know more than the tokenizer's data."""
    if not getattr(tokenizer, "is_fast", False) or not type(tokenizer).__module__.startswith("transformers."):
        return None
    special = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.split_special_tokens
    return type(tokenizer), special, tokenizer.backend_tokenizer.to_str()
