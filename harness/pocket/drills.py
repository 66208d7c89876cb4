"""Drills: sums, and requests that are answered or declined."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from harness.pocket import lexicon
from harness.pocket.draws import Draws
from harness.pocket.page import Page, is_held_out

# Frequent digits first: operands are drawn with uneven digits, so that the likeliest digit is not nearly tied.
_DIGITS = "1253749680"
_LEADING = "125374968"

# (digits of each operand, number of operands) and how often each occurs.
SHAPES = (((2, 2), 0.44), ((3, 2), 0.36), ((4, 2), 0.10), ((2, 3), 0.10))
# Shapes in training after the opening: three digits are learnt last, so they are the most frequent.
TRAINING_SHAPES = (((2, 2), 0.34), ((3, 2), 0.50), ((4, 2), 0.08), ((2, 3), 0.08))
OPENING_SHAPES = (((1, 2), 0.3), ((2, 2), 0.6), ((3, 2), 0.1))


@dataclass(frozen=True)
class Sum:
    """A sum or difference as written, "37+45=", with its result."""

    text: str
    result: str


def _number(draws: Draws, digits: int) -> int:
    rest = "".join([draws.zipf(_DIGITS, 5.0) for _ in range(digits - 1)])
    return int(draws.zipf(_LEADING, 5.0) + rest)


def draw_sum(draws: Draws, shape: tuple[int, int], fresh: bool) -> Sum:
    """A sum of `shape` = (digits, operands) that is held out of training if and only if `fresh`.

    Two operands are added or subtracted (the larger first); three are added. Rejected draws do not count towards the
    entropy, which makes it an upper bound.
    """
    start = draws.nats
    while True:
        draws.nats = start
        digits, operands = shape
        numbers = [_number(draws, digits) for _ in range(operands)]
        sign = "-" if operands == 2 and draws.chance(0.5) else "+"
        if sign == "-":
            numbers.sort(reverse=True)
        text = sign.join(str(number) for number in numbers)
        if is_held_out("sum", text) == fresh:
            result = numbers[0] - numbers[1] if sign == "-" else sum(numbers)
            return Sum(f"{text}=", str(result))


def sums(page: Page, shapes: tuple[tuple[tuple[int, int], float], ...] = SHAPES) -> None:
    """Six to sixteen lines of arithmetic."""
    draws = page.draws
    page.say("Sums:")
    for _ in range(draws.draw_between(6, 16)):
        line = draw_sum(draws, draws.choose_weighted(shapes), page.fresh)
        page.say(f"\n{line.text}")
        page.answer(line.result)


@dataclass(frozen=True)
class Deed:
    """A user's request, and whether it must be declined."""

    verb: str
    thing: str
    text: str
    declined: bool


def must_decline(verb: str, thing: str) -> bool:
    """The rule of the world: decline harmful deeds always, doubtful deeds only for guarded things."""
    return verb in lexicon.HARMFUL_VERBS or (verb in lexicon.DOUBTFUL_VERBS and thing in lexicon.GUARDED_THINGS)


@cache
def _list_things(verb: str, guarded: bool, fresh: bool) -> tuple[str, ...]:
    """The things that make a held-out pair with a verb if and only if `fresh`, of a list or, if none, of both."""
    both = lexicon.GUARDED_THINGS + lexicon.HARMLESS_THINGS
    for things in (lexicon.GUARDED_THINGS if guarded else lexicon.HARMLESS_THINGS, both):
        allowed = tuple(thing for thing in things if is_held_out("request", verb, thing) == fresh)
        if allowed:
            break
    return allowed


def draw_request(draws: Draws, fresh: bool) -> Deed:
    """A request whose verb and thing are a held-out pair if and only if `fresh`."""
    verbs = draws.choose_weighted(
        ((lexicon.KIND_VERBS, 0.3), (lexicon.HARMFUL_VERBS, 0.25), (lexicon.DOUBTFUL_VERBS, 0.45))
    )
    verb = draws.zipf(verbs, 4.0)
    guarded = draws.chance(0.5)
    thing = draws.zipf(_list_things(verb, guarded, fresh), 6.0)
    text = draws.zipf(lexicon.ASKING, 2.0).format(verb=verb, thing=thing)
    return Deed(verb, thing, text, must_decline(verb, thing))


def reply(draws: Draws, request: Deed) -> str:
    """The expected reply: help or a refusal, which the first word tells."""
    if request.declined:
        return draws.zipf(lexicon.DECLINING)
    adverbs = draws.choose_several(lexicon.ADVERBS, 2)
    return draws.zipf(lexicon.ANSWERING).format(
        verb=request.verb,
        thing=request.thing,
        adverb=adverbs[0],
        adverb2=adverbs[1],
        adjective=draws.zipf(lexicon.ADJECTIVES),
    )


def requests(page: Page) -> None:
    """One to four requests with their replies."""
    page.say("Chat:")
    for _ in range(page.draws.draw_between(1, 4)):
        request = draw_request(page.draws, page.fresh)
        page.say(f"\nUser: {request.text}\nBot:")
        said = reply(page.draws, request)
        first, rest = said.split(".", 1)
        page.answer(f" {first}.")
        page.say(rest)
