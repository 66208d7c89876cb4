"""Aligned windows: the same spans of text under two tokenizers, so that models with different tokens compare by bytes.

    text ─▶ token boundaries of each tokenizer ─▶ boundaries common to both ─▶ windows that fit both sides

A window begins and ends at token boundaries of both tokenizers, so the likelihoods of its tokens are those of the same
bytes on both sides. Text that one side cannot score (the first token of a text, if its tokenizer has no BOS) is
excluded on the other side too. Texts that do not survive encoding and decoding (the tokenizer lowers case, drops
accents, writes "unknown") are not scored: predicting less than the text is cheaper, not better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.data.encoding import tokenize_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """One text under one tokenizer: ids without special tokens, and the positions where it may be cut.

    places: characters before each cut, ascending, from 0 to the whole text; counts: tokens before each cut. lossy:
    whether decoding the ids does not reproduce the text.
    """

    ids: Integers
    places: Integers
    counts: Integers
    lossy: bool


@dataclass(frozen=True)
class TokenizedSide:
    """One side: its tokenizer, the ids it puts before a text (BOS, or none), and its maximum number of ids."""

    tokenizer: PreTrainedTokenizerBase
    opening: tuple[int, ...]
    most: int


@dataclass(frozen=True)
class Stretch:
    """The ids of one side, including the opening, and the index of the first scored one."""

    ids: Integers
    first: int


@dataclass(frozen=True)
class Window:
    """A span of text under both tokenizers. begin, end: the scored characters; size: their UTF-8 bytes."""

    begin: int
    end: int
    size: int
    sides: tuple[Stretch, Stretch]


def readings(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[Reading]:
    """Tokenize every text. Without offsets (slow tokenizers) a text can only be used as a whole."""
    for text, (ids, offsets) in zip(texts, tokenize_texts(texts, tokenizer), strict=True):
        yield Reading(ids, *find_cuts(text, len(ids), offsets), lossy=not _round_trips(text, ids, tokenizer))


def find_cuts(text: str, tokens: int, offsets: Sequence[tuple[int, int]] | None) -> tuple[Integers, Integers]:
    """Character positions in a text that no token straddles, and the number of tokens before each.

    offsets: the character span of every token, in order; None if unknown. Characters between two spans belong to the
    token after them, those after the last span to the last token.
    """
    if not text:
        return np.array([0]), np.array([tokens])
    spans = np.asarray(offsets if offsets is not None else (), dtype=np.int64).reshape(-1, 2)
    wide = spans[:, 1] > spans[:, 0]
    if not wide.any():
        return np.array([0, len(text)]), np.array([0, tokens])
    covered = np.maximum.accumulate(spans[:, 1])
    starts = np.where(wide, spans[:, 0], len(text))
    later = np.append(np.minimum.accumulate(starts[::-1])[::-1][1:], len(text))
    # The characters of a token without a span are unknown, so there is no cut next to one.
    free = np.flatnonzero((later >= covered) & wide & np.append(wide[1:], True)) + 1
    places = np.concatenate(([0], covered[free - 1], [len(text)]))
    counts = np.concatenate(([0], free, [tokens]))
    last = np.append(places[1:] > places[:-1], True)
    return places[last], counts[last]


def windows(
    text: str, sides: tuple[Reading, Reading], readers: tuple[TokenizedSide, TokenizedSide], whole: bool
) -> list[Window]:
    """Windows of one text that fit both sides: the first one, or (``whole``) consecutive ones up to the end.

    Empty if no window fits, because there is no common cut within the maximum number of ids of both sides.
    """
    places, *picked = np.intersect1d(sides[0].places, sides[1].places, assume_unique=True, return_indices=True)
    counts = tuple(side.counts[index] for side, index in zip(sides, picked, strict=True))
    room = tuple(reader.most - len(reader.opening) for reader in readers)
    opened = all(reader.opening for reader in readers)
    aligned: list[Window] = []
    at = 0
    while at < len(places) - 1 and (whole or not aligned):
        fits = np.logical_and(*(count - count[at] <= most for count, most in zip(counts, room, strict=True)))
        end = int(np.flatnonzero(fits)[-1])
        # Without an opening, the first token has no context to be predicted from.
        first = at if opened else at + 1
        if end <= first:
            break
        stretches = [
            Stretch(
                np.concatenate((reader.opening, side.ids[count[at] : count[end]])).astype(np.int64),
                len(reader.opening) + int(count[first] - count[at]),
            )
            for side, reader, count in zip(sides, readers, counts, strict=True)
        ]
        begin, stop = int(places[first]), int(places[end])
        aligned.append(Window(begin, stop, len(text[begin:stop].encode()), (stretches[0], stretches[1])))
        at = end
    return aligned


def _round_trips(text: str, ids: Integers, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether decoding the ids reproduces the text, apart from a leading blank that some tokenizers always add."""
    decoded = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return decoded in (text, f" {text}")
