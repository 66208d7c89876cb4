"""Pages without people: plain prose, code words to recall from far back, and lists to copy."""

from __future__ import annotations

from dataclasses import dataclass

from harness.pocket import lexicon
from harness.pocket.draws import Draws
from harness.pocket.page import Page, Query


@dataclass(frozen=True)
class _Pattern:
    """A sentence with fields, in the order in which they are drawn: one or two different words of a list, or any."""

    text: str
    pairs: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    singles: tuple[tuple[str, tuple[str, ...]], ...]


_PAIRS = (("adjective", lexicon.ADJECTIVES), ("land", lexicon.LANDSCAPE))
_SINGLES = (
    ("move", lexicon.MOVES),
    ("adverb", lexicon.ADVERBS),
    ("time", lexicon.TIMES),
    ("weather", lexicon.WEATHER),
)


def _read_pattern(text: str) -> _Pattern:
    def has(field: str) -> bool:
        return f"{{{field}}}" in text

    pairs = tuple((tuple(filter(has, (name, f"{name}2"))), options) for name, options in _PAIRS)
    return _Pattern(text, pairs, tuple((name, options) for name, options in _SINGLES if has(name)))


_PATTERNS = tuple(map(_read_pattern, lexicon.FILLERS))


def sentence(draws: Draws) -> str:
    """One sentence of prose about weather and landscape; it never speaks of people, places or things."""
    pattern = draws.zipf(_PATTERNS, 3.0)
    words: dict[str, str] = {}
    for fields, options in pattern.pairs:
        words |= zip(fields, draws.choose_several(options, len(fields)), strict=True)
    for field, options in pattern.singles:
        words[field] = draws.zipf(options)
    return pattern.text.format_map(words)


def filler(page: Page) -> None:
    """Three to nine sentences of prose."""
    sentences = [sentence(page.draws) for _ in range(page.draws.draw_between(3, 9))]
    page.say("Text: " + " ".join(sentences))


def code_word(draws: Draws, syllables: int = 3) -> str:
    """A made-up word; its syllables are drawn with mild Zipf weights."""
    return "".join(draws.zipf(lexicon.SYLLABLES, 12.0) for _ in range(syllables))


def draw_recall(page: Page, most_fillers: int) -> None:
    """One to five code words, up to `most_fillers` sentences, one or two questions."""
    draws = page.draws
    keys = 1 + draws.zipf(range(5), 3.0)
    # Half of the time all words stand at the start; otherwise prose comes between them as well.
    recall(page, keys, draws.draw_between(0, most_fillers), draws.draw_between(1, min(2, keys)), draws.chance(0.5))


def recall(page: Page, keys: int, fillers: int, queries: int, scattered: bool) -> None:
    """Code words for `keys` places, `fillers` sentences of prose, then questions for some of the words.

    If `scattered`, prose comes between the words as well. With several words the last one seen is a wrong
    answer more often than not.
    """
    draws = page.draws
    places = draws.choose_several(lexicon.PLACES, keys, 8.0)
    codes = [code_word(draws) for _ in places]
    gaps = [draws.draw_below(fillers + 1) if scattered else 0 for _ in places[1:]]
    parts = []
    left = fillers
    for place, code, gap in zip(places, codes, [*gaps, fillers], strict=True):
        parts.append(f"The code word for the {place} is {code}.")
        parts += [sentence(draws) for _ in range(min(gap, left))]
        left -= min(gap, left)
    page.say("Note: " + " ".join(parts))
    asked = draws.shuffle(range(keys))[:queries]
    page.ask(
        [
            Query(
                "recall",
                f"What is the code word for the {places[index]}?",
                codes[index],
                tuple(code for code in codes if code != codes[index]),
            )
            for index in asked
        ]
    )


def copy(page: Page) -> None:
    """A list of words, and the same list again."""
    draws = page.draws
    count = draws.draw_between(4, 24)
    pool = draws.zipf((lexicon.OBJECTS, lexicon.NAMES, lexicon.TOWNS, lexicon.FOODS), 4.0)
    words = [code_word(draws) if draws.chance(0.3) else draws.zipf(pool, 8.0) for _ in range(count)]
    listed = ", ".join(words) + "."
    page.say(f"List: {listed}\nAgain:")
    page.answer(f" {listed}")
