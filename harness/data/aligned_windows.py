"""The same stretches of text under two tokenizers, so that models with different tokens can be compared by bytes.

    text ─▶ where each tokenizer can be cut ─▶ places that both share ─▶ windows that fit both sides

A stretch begins and ends where both tokenizers begin and end a token, so the likelihoods of its tokens are those of
the same bytes on both sides. What one side cannot score (the first token of a text, where its tokenizer has no BOS) is
left out on the other side too. Texts that a tokenizer does not give back (it lowers case, drops accents, writes
"unknown") are not scored: predicting less than the text is cheaper, not better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.data.encoding import tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """One text as one tokenizer reads it: ids without special tokens, and where they may be cut.

    places: characters before a cut, rising, first 0 and last the whole text; counts: tokens before it. lossy: whether
    the ids do not give the text back.
    """

    ids: Integers
    places: Integers
    counts: Integers
    lossy: bool


@dataclass(frozen=True)
class Reader:
    """One side: its tokenizer, what it puts before a text (BOS, or nothing), and how many ids it reads at once."""

    tokenizer: PreTrainedTokenizerBase
    opening: tuple[int, ...]
    most: int


@dataclass(frozen=True)
class Stretch:
    """Ids that one side reads, opening included, and the first of them that is scored."""

    ids: Integers
    first: int


@dataclass(frozen=True)
class Window:
    """A stretch of text as both sides read it. begin, end: the characters that are scored; size: their UTF-8 bytes."""

    begin: int
    end: int
    size: int
    sides: tuple[Stretch, Stretch]


def readings(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[Reading]:
    """Every text as ``tokenizer`` reads it. Without offsets (slow tokenizers) a text can only be taken whole."""
    for text, (ids, offsets) in zip(texts, tokenized(texts, tokenizer), strict=True):
        yield Reading(ids, *cuts(text, len(ids), offsets), lossy=not _gives_back(text, ids, tokenizer))


def cuts(text: str, tokens: int, offsets: Sequence[tuple[int, int]] | None) -> tuple[Integers, Integers]:
    """Places in a text (characters) that no token straddles, and how many tokens lie before each.

    offsets: the character span of every token, in order; None where they are not known. Characters between two spans
    belong to the token after them, those after the last span to the last token.
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
    # Which characters a token without a span stands for is not known, so beside one there is no cut.
    free = np.flatnonzero((later >= covered) & wide & np.append(wide[1:], True)) + 1
    places = np.concatenate(([0], covered[free - 1], [len(text)]))
    counts = np.concatenate(([0], free, [tokens]))
    last = np.append(places[1:] > places[:-1], True)
    return places[last], counts[last]


def windows(text: str, sides: tuple[Reading, Reading], readers: tuple[Reader, Reader], whole: bool) -> list[Window]:
    """Stretches of one text that fit both sides: the first one, or (``whole``) one after the other to its end.

    Empty where no stretch fits: there is no common place to cut within what both sides read at once.
    """
    places, *picked = np.intersect1d(sides[0].places, sides[1].places, assume_unique=True, return_indices=True)
    counts = tuple(side.counts[index] for side, index in zip(sides, picked, strict=True))
    room = tuple(reader.most - len(reader.opening) for reader in readers)
    opened = all(reader.opening for reader in readers)
    found: list[Window] = []
    at = 0
    while at < len(places) - 1 and (whole or not found):
        fits = np.logical_and(*(count - count[at] <= most for count, most in zip(counts, room, strict=True)))
        end = int(np.flatnonzero(fits)[-1])
        # Without an opening a first token has nothing to be predicted from.
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
        found.append(Window(begin, stop, len(text[begin:stop].encode()), (stretches[0], stretches[1])))
        at = end
    return found


def _gives_back(text: str, ids: Integers, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether ids stand for exactly this text; a blank in front that a tokenizer adds to every text does not count."""
    decoded = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return decoded in (text, f" {text}")
