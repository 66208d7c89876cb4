"""Stories: people with consistent facts, and questions that need one fact or two.

A two-hop question names a person by way of another fact ("the best friend of Mira", "the baker").
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.pocket import lexicon
from harness.pocket.draws import Draws
from harness.pocket.lexicon import Relation
from harness.pocket.page import Page, Query
from harness.pocket.prose import sentence


@dataclass(frozen=True)
class Fact:
    """`person` has `value` for `relation`; no other person of the story has the same value for it."""

    person: str
    relation: Relation
    value: str


@dataclass(frozen=True)
class Cast:
    """All facts of one story. `friends` maps every person to another one, or is empty."""

    people: list[str]
    facts: list[Fact]
    friends: dict[str, str]


def cast(draws: Draws, people: int, relations: int, friends: bool) -> Cast:
    """Draw people, give each one value per relation, and, if `friends`, each a best friend."""
    names = draws.choose_several(lexicon.NAMES, people, 8.0)
    facts = []
    for relation in draws.choose_several(lexicon.RELATIONS, relations, 8.0):
        values = draws.choose_several(relation.values, people, 5.0)
        facts += [Fact(name, relation, value) for name, value in zip(names, values, strict=True)]
    step = draws.draw_between(1, people - 1) if friends else 0
    circle = {name: names[(index + step) % people] for index, name in enumerate(names)} if friends else {}
    return Cast(names, facts, circle)


def tell(draws: Draws, scene: Cast, fillers: int, phrasings: int | None = None) -> str:
    """Every fact of the cast in a random order, with sentences of prose at random places between them.

    `phrasings` limits the facts to their most frequent phrasings.
    """
    said = []
    for fact in scene.facts:
        pattern = draws.zipf(fact.relation.statements[:phrasings], 2.0)
        said.append(pattern.format(p=fact.person, v=fact.value))
    said += [draws.zipf(lexicon.FRIEND_STATEMENTS, 2.0).format(p=a, v=b) for a, b in scene.friends.items()]
    said = draws.shuffle(said)
    for _ in range(fillers):
        said.insert(draws.draw_below(len(said) + 1), sentence(draws))
    return "Story: " + " ".join(said)


def _others(scene: Cast, fact: Fact) -> tuple[str, ...]:
    """The values of the other people of the story for the same relation."""
    return tuple(other.value for other in scene.facts if other.relation is fact.relation and other is not fact)


def ask_forward(draws: Draws, scene: Cast, fact: Fact) -> Query:
    """The value of a fact, given the person."""
    question = draws.zipf(fact.relation.questions, 2.0).format(p=fact.person)
    return Query("forward", question, fact.value, _others(scene, fact))


def ask_reverse(scene: Cast, fact: Fact) -> Query:
    """The person of a fact, given the value."""
    others = tuple(name for name in scene.people if name != fact.person)
    return Query("reverse", fact.relation.reverse.format(v=fact.value), fact.person, others)


def ask_friend(scene: Cast, person: str) -> Query:
    """Who the best friend is: the first half of a two-hop question on its own."""
    others = tuple(name for name in scene.people if name not in (person, scene.friends[person]))
    return Query("friend", lexicon.FRIEND_QUESTION.format(p=person), scene.friends[person], others)


def ask_two_hop(draws: Draws, scene: Cast, fact: Fact) -> Query | None:
    """The value of a fact, the person given by way of a friend or of a job.

    None if neither can name the person.
    """
    ways = [lexicon.FRIEND_PHRASE.format(p=a) for a, b in scene.friends.items() if b == fact.person]
    if fact.relation.name != "job":
        jobs = [other.value for other in scene.facts if other.person == fact.person and other.relation.name == "job"]
        ways += [lexicon.JOB_PHRASE.format(v=job) for job in jobs]
    if not ways:
        return None
    phrase = ways[draws.draw_below(len(ways))]
    question = draws.zipf(fact.relation.questions, 2.0).format(p=phrase)
    form = "two_hop_friend" if "friend" in phrase else "two_hop_job"
    return Query(form, question, fact.value, _others(scene, fact))


def story(
    page: Page, people: tuple[int, int], relations: tuple[int, int], fillers: int, queries: tuple[int, int]
) -> None:
    """A story with questions of one hop; ranges are inclusive. Facts asked about are different ones."""
    draws = page.draws
    scene = cast(draws, draws.draw_between(*people), draws.draw_between(*relations), friends=False)
    page.say(tell(draws, scene, draws.draw_between(0, fillers)))
    asked = draws.shuffle(scene.facts)[: draws.draw_between(*queries)]
    page.ask([ask_reverse(scene, f) if draws.chance(0.2) else ask_forward(draws, scene, f) for f in asked])


def two_hop_story(
    page: Page, people: tuple[int, int], relations: tuple[int, int], fillers: int, queries: tuple[int, int]
) -> None:
    """A story with best friends; most questions need two facts, some only the first of them."""
    draws = page.draws
    scene = cast(draws, draws.draw_between(*people), draws.draw_between(*relations), friends=True)
    page.say(tell(draws, scene, draws.draw_between(0, fillers)))
    asked: list[Query] = []
    for fact in draws.shuffle(scene.facts)[: draws.draw_between(*queries)]:
        form = draws.choose_weighted((("two_hop", 0.6), ("friend", 0.2), ("forward", 0.2)))
        if form == "two_hop":
            asked.append(ask_two_hop(draws, scene, fact) or ask_forward(draws, scene, fact))
        elif form == "friend":
            asked.append(ask_friend(scene, fact.person))
        else:
            asked.append(ask_forward(draws, scene, fact))
    page.ask(asked)
