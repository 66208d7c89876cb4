"""When a generated text is complete: at an end token, or where a stop string can no longer begin earlier."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

TOKENS_PER_CHARACTER = 4
"""The most tokens that a character of a stop string may take: one for each of its bytes."""


class StopText:
    """Whether token ids are a complete text, asked after each token.

    decode: the text of token ids as it will be scored; stops: the text ends before any of them.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str], end_tokens: Collection[int]
    ) -> None:
        self._decode, self._end_tokens = decode, frozenset(end_tokens)
        self._stops = [stop for stop in stops if stop]
        self._tail = TOKENS_PER_CHARACTER * max(map(len, self._stops), default=0) + 2

    def __call__(self, ids: Sequence[int]) -> bool:
        """ids: a continuation that was not complete before its last token."""
        if ids[-1] in self._end_tokens:
            return True
        # A stop string is completed by the newest token, so the end of the text is looked at before all of it.
        tail = self._decode(ids[-self._tail :])
        return any(stop in tail for stop in self._stops) and self._is_cut(self._decode(ids))

    def _is_cut(self, text: str) -> bool:
        """Whether the text is cut at the same place whatever follows.

        It is once nothing that a stop string may still complete begins within the stop strings that are there, except
        where the first of them does.
        """
        found = sorted((place, place + len(stop)) for stop in self._stops for place in _find_all(text, stop))
        if not found:
            return False
        first, end = found[0]
        for begin, own_end in found:
            end = max(end, own_end) if begin < end else end
        open_places = (
            begin
            for stop in self._stops
            for begin in range(max(0, len(text) - len(stop) + 1), len(text))
            if stop.startswith(text[begin:])
        )
        return not any(begin < end and begin != first for begin in open_places)


def _find_all(text: str, stop: str) -> Iterator[int]:
    """Every place where ``stop`` begins."""
    place = text.find(stop)
    while place >= 0:
        yield place
        place = text.find(stop, place + 1)
