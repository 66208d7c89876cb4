"""Encoding: converts texts to the token ids that both models read. The only caller of a tokenizer on documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.data.documents import RawDocument
from harness.data.duplicates import find_copied_windows, find_first_copies, find_near_duplicates, normalize_space
from harness.errors import DataError, HarnessError
from harness.records import Bos, DocumentsSpec
from harness.system.foreign import guard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SKIPPED_SHARE = 0.01
"""Largest tolerated share of documents without a token to score; more suggests that the data are wrong."""


@dataclass(frozen=True)
class EncodedDocument:
    """One document as both models read it.

    ids: int64, including BOS. bytes: float32, UTF-8 bytes of text per id (0 for BOS, NaN if the tokenizer gives no
    offsets). All ids but the first are scored. total_tokens: number of ids before truncation. skipped: the reason why
    no token of this document can be scored, or "". duplicate_of: index of the first document with the same text; None
    for a document that repeats no earlier one.
    """

    index: int
    id: str
    kind: str
    ids: NDArray[np.int64]
    bytes: NDArray[np.float32]
    total_tokens: int
    cut: bool
    skipped: str
    language: str = ""
    duplicate_of: int | None = None

    @property
    def cluster(self) -> int:
        """Label of the cluster that it belongs to: the index of the first document with the same text."""
        return self.index if self.duplicate_of is None else self.duplicate_of

    @property
    def tokens(self) -> int:
        """Number of scored tokens."""
        return 0 if self.skipped else len(self.ids) - 1


def encode(
    raw: Sequence[RawDocument], tokenizer: PreTrainedTokenizerBase, spec: DocumentsSpec, vocab_size: int
) -> list[EncodedDocument]:
    """Token ids of every document, following the protocol in ``DocumentsSpec``.

    BOS is prepended here, not by the tokenizer's post-processor, so that it cannot get lost. With ``packed`` the result
    is windows of ``context`` tokens (the last may be shorter), followed by skipped documents.

    Raises DataError: no BOS token although requested, an id outside the ``vocab_size`` logits, no token to score, or
    more than 1 % of the documents without one.
    """
    opening = _bos_ids(tokenizer, spec.bos)
    texts = [document.text for document in raw]
    streams = [_prepend(opening, ids, sizes) for ids, sizes in _tokenize(texts, tokenizer)]
    _check_range(raw, streams, vocab_size)
    encoded = [
        _truncate(index, document, ids, sizes, spec.context)
        for index, (document, (ids, sizes)) in enumerate(zip(raw, streams, strict=True))
    ]
    _check_skipped(encoded)
    contents = [normalize_space(text) for text in texts]
    if spec.packed:
        return _pack(encoded, streams, find_first_copies([(content,) for content in contents]), spec.context)
    # Documents that differ beyond the context alone are copies too: both models read the same ids.
    first = find_first_copies([(text, each.ids.tobytes()) for text, each in zip(contents, encoded, strict=True)])
    return [_mark_duplicate(document, earlier) for document, earlier in zip(encoded, first, strict=True)]


def count_prompt_ids(
    raw: Sequence[RawDocument], encoded: Sequence[EncodedDocument], tokenizer: PreTrainedTokenizerBase, bos: Bos
) -> list[int]:
    """How many ids at the beginning of each document, BOS included, belong to its prompt alone.

    A token that spans the end of the prompt belongs to what follows. encoded: ``raw`` as ``encode`` gives it.
    """
    opening = len(_bos_ids(tokenizer, bos))
    prompts = tokenize_texts([document.prompt for document in raw], tokenizer)
    return [
        opening + _common_length(document.ids[opening:], ids)
        for document, (ids, _) in zip(encoded, prompts, strict=True)
    ]


def _common_length(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """How many ids both begin with."""
    shorter = min(len(first), len(second))
    differing = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differing[0]) if len(differing) else shorter


def _mark_duplicate(document: EncodedDocument, first: int) -> EncodedDocument:
    return document if first == document.index else replace(document, duplicate_of=first)


def documents_sha256(encoded: Iterable[EncodedDocument]) -> str:
    """Hash of the token ids of all documents, in order; if it is equal, two models read the same ids."""
    digest = hashlib.sha256()
    for document in encoded:
        digest.update(len(document.ids).to_bytes(8, "little"))
        digest.update(document.ids.astype("<i8").tobytes())
    return digest.hexdigest()


def count_duplicates(encoded: Iterable[EncodedDocument]) -> int:
    """Number of scored documents that repeat the text of an earlier one; they add no evidence."""
    return sum(document.duplicate_of is not None and not document.skipped for document in encoded)


def name_similar(encoded: Iterable[EncodedDocument]) -> list[tuple[str, str]]:
    """The ids of scored documents that repeat long stretches of earlier ones, with that of the earlier document (see
    ``find_near_duplicates``)."""
    distinct = [document for document in encoded if document.duplicate_of is None and not document.skipped]
    pairs = find_near_duplicates([document.ids[1:] for document in distinct])
    return [(distinct[later].id, distinct[earlier].id) for later, earlier in pairs]


def puts_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer has a BOS token and itself puts it before a text."""
    token = tokenizer.bos_token_id
    return isinstance(token, int) and list(tokenizer("word", verbose=False)["input_ids"])[:1] == [token]


def follow_bos(bos: Bos, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether texts begin with BOS, as far as there is one; ``auto`` is false for a tokenizer that does not put its
    own."""
    return tokenizer.bos_token_id is None or puts_bos(tokenizer) if bos == "auto" else bos


def _bos_ids(tokenizer: PreTrainedTokenizerBase, bos: Bos) -> tuple[int, ...]:
    if not (puts_bos(tokenizer) if bos == "auto" else bos):
        return ()
    token = tokenizer.bos_token_id
    if not isinstance(token, int):
        raise DataError("documents have bos: true, but the tokenizer has no BOS token; set bos: false")
    return (token,)


def _tokenize(
    texts: list[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Ids and bytes of each text, without special tokens."""
    for text, (ids, offsets) in zip(texts, tokenize_texts(texts, tokenizer), strict=True):
        yield ids, np.full(len(ids), np.nan, dtype=np.float32) if offsets is None else span_bytes(text, offsets)


def tokenize_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[NDArray[np.int64], Sequence[tuple[int, int]] | None]]:
    """Ids of each text, without special tokens, and the character span of each id (None: slow tokenizers)."""
    try:
        with guard("the tokenizer"):
            encodings = tokenizer(
                list(texts),
                add_special_tokens=False,
                truncation=False,
                padding=False,
                verbose=False,
                return_offsets_mapping=tokenizer.is_fast,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
    except HarnessError:
        raise
    except Exception as error:  # Tokenizers are files and code of others, and raise anything.
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path} cannot encode {len(texts)} texts: {type(error).__name__}: "
            f"{error}; repair its files"
        ) from error
    for index in range(len(texts)):
        offsets = encodings["offset_mapping"][index] if tokenizer.is_fast else None
        yield np.asarray(encodings["input_ids"][index], dtype=np.int64), offsets


def span_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    """UTF-8 bytes of ``text`` per token; they sum to the bytes of the whole text.

    offsets: the character span of each token, in order. Tokens that share a character (one for each of its bytes, say)
    share its bytes equally. Characters between two spans (blanks that a tokenizer leaves out of its offsets) belong to
    the token after them, those after the last span to the last token that has one.
    """
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    if not len(spans) or not text:
        return np.zeros(len(spans), dtype=np.float32)
    starts, ends = spans[:, 0].copy(), spans[:, 1].copy()
    covered = np.maximum.accumulate(ends)
    before = np.concatenate(([0], covered[:-1]))
    wide = ends > starts
    starts[wide] = np.minimum(starts, before)[wide]
    if wide.any():
        ends[np.flatnonzero(wide)[-1]] = len(text)
    sharing = np.zeros(len(text) + 1, dtype=np.int64)
    np.add.at(sharing, starts[wide], 1)
    np.add.at(sharing, ends[wide], -1)
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    sizes = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    shares = sizes / np.maximum(np.cumsum(sharing[:-1]), 1)
    until = np.concatenate(([0.0], np.cumsum(shares)))
    return (until[ends] - until[starts]).astype(np.float32)


def _prepend(
    opening: tuple[int, ...], ids: NDArray[np.int64], sizes: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    front = np.asarray(opening, dtype=np.int64)
    return np.concatenate((front, ids)), np.concatenate((np.zeros(len(front), dtype=np.float32), sizes))


def _check_range(raw: Sequence[RawDocument], streams: Sequence[tuple[NDArray[np.int64], Any]], vocab_size: int) -> None:
    for document, (ids, _) in zip(raw, streams, strict=True):
        outside = ids[(ids < 0) | (ids >= vocab_size)]
        if len(outside):
            raise DataError(
                f"document {document.id}: the tokenizer returns the id {outside[0]}, but the model has ids 0 to "
                f"{vocab_size - 1}; tokenizer and model do not belong together"
            )


def _truncate(
    index: int, document: RawDocument, ids: NDArray[np.int64], sizes: NDArray[np.float32], context: int
) -> EncodedDocument:
    return EncodedDocument(
        index=index,
        id=document.id,
        kind=document.kind,
        ids=ids[:context],
        bytes=sizes[:context],
        total_tokens=len(ids),
        cut=len(ids) > context,
        language=document.language,
        skipped="" if len(ids) > 1 else f"{len(ids)} of the 2 tokens that scoring needs (including BOS)",
    )


def _check_skipped(encoded: Sequence[EncodedDocument]) -> None:
    skipped = [document for document in encoded if document.skipped]
    if len(skipped) == len(encoded) or len(skipped) > SKIPPED_SHARE * len(encoded):
        example = f"; the first is {skipped[0].id} ({skipped[0].skipped})" if skipped else ""
        raise DataError(
            f"{len(skipped)} of {len(encoded)} documents have no token to score, "
            f"expected at most {SKIPPED_SHARE:.0%}{example}"
        )


def _pack(
    encoded: Sequence[EncodedDocument],
    streams: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]],
    first: Sequence[int],
    context: int,
) -> list[EncodedDocument]:
    kept = [index for index, document in enumerate(encoded) if not document.skipped]
    ids = np.concatenate([streams[index][0] for index in kept])
    sizes = np.concatenate([streams[index][1] for index in kept])
    copied = find_copied_windows(_sources({index: streams[index][0] for index in kept}, first), context)
    packed = [
        _mark_duplicate(
            EncodedDocument(
                index, f"window-{index}", "packed", window, sizes[at : at + context], len(window), False, ""
            ),
            copied[index],
        )
        for index, at in enumerate(range(0, len(ids) - 1, context))
        for window in [ids[at : at + context]]
    ]
    left = (document for document in encoded if document.skipped)
    return packed + [replace(document, index=index) for index, document in enumerate(left, len(packed))]


def _sources(streams: dict[int, NDArray[np.int64]], first: Sequence[int]) -> NDArray[np.int64]:
    """For each token of the packed stream, the position of its first copy there (see ``find_copied_windows``)."""
    starts = dict(zip(streams, np.cumsum([0, *map(len, streams.values())]).tolist(), strict=False))
    parts = []
    for index, ids in streams.items():
        # A copy with other white space has about as many tokens at about the same places.
        parts.append(starts[first[index]] + np.minimum(np.arange(len(ids)), len(streams[first[index]]) - 1))
    return np.concatenate(parts)
