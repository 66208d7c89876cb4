"""Tales: people go to places, take things and send them to each other; questions ask for the final state."""

from __future__ import annotations

from harness.pocket import lexicon
from harness.pocket.draws import Draws
from harness.pocket.page import Page, Query
from harness.pocket.prose import sentence


class World:
    """The place of every person and the holder of every thing; things without a holder are not mentioned."""

    def __init__(self, draws: Draws, people: int, things: int) -> None:
        self.people = draws.choose_several(lexicon.NAMES, people, 8.0)
        self.places = draws.choose_several(lexicon.PLACES, people + 1, 8.0)
        self.where = dict(zip(self.people, self.places, strict=False))
        self.free = draws.choose_several(lexicon.OBJECTS, things, 8.0)
        self.holder: dict[str, str] = {}

    def opening(self, draws: Draws) -> list[str]:
        """Sentences that state each person's initial place, in a random order."""
        return draws.shuffle([f"{person} was at the {place}." for person, place in self.where.items()])

    def step(self, draws: Draws) -> str:
        """Draw one event, apply it, and return its sentence."""
        kind = draws.choose_weighted((("take", 3.0), ("send", 3.0), ("go", 3.0)))
        if (kind == "take" and self.free) or (not self.holder and kind != "go"):
            thing = self.free.pop()
            self.holder[thing] = draws.zipf(self.people, 4.0)
            return f"{self.holder[thing]} took the {thing}."
        if kind != "go":
            thing = list(self.holder)[draws.draw_below(len(self.holder))]
            giver = self.holder[thing]
            others = [person for person in self.people if person != giver]
            self.holder[thing] = others[draws.draw_below(len(others))]
            return f"{giver} sent the {thing} to {self.holder[thing]}."
        person = draws.zipf(self.people, 4.0)
        elsewhere = [place for place in self.places if place != self.where[person]]
        self.where[person] = elsewhere[draws.draw_below(len(elsewhere))]
        return f"{person} went to the {self.where[person]}."

    def queries(self) -> list[Query]:
        """Every question that has an answer now."""
        asked = []
        for person, place in self.where.items():
            wrong = tuple(other for other in self.places if other != place)
            asked.append(Query("where_person", f"Where is {person}?", place, wrong))
        for thing, person in self.holder.items():
            others = tuple(other for other in self.people if other != person)
            asked.append(Query("who_has", f"Who has the {thing}?", person, others))
            place = self.where[person]
            wrong = tuple(other for other in self.places if other != place)
            asked.append(Query("where_thing", f"Where is the {thing}?", place, wrong))
        return asked


def tale(page: Page, people: tuple[int, int] = (2, 4), steps: tuple[int, int] = (3, 8), queries: int = 5) -> None:
    """Two to four people, three to eight events, one to five questions."""
    draws = page.draws
    world = World(draws, draws.draw_between(*people), draws.draw_between(1, 3))
    said = world.opening(draws)
    for _ in range(draws.draw_between(*steps)):
        said.append(world.step(draws))
        if draws.chance(0.15):
            said.append(sentence(draws))
    page.say("Tale: " + " ".join(said))
    page.ask(draws.shuffle(world.queries())[: draws.draw_between(1, queries)])
