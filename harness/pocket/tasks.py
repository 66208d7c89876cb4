"""Items of the pocket tasks, from easy ones that the reference always solves to hard ones where it makes mistakes.

An easy task detects breakage, a hard one reacts to mild degradation. The difficulty is defined in RUNGS alone; it was
chosen once, on the bundled model, and affects no document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import overload

from harness.pocket import drills, prose, stories, tales
from harness.pocket.draws import Draws
from harness.pocket.page import Page, Query, owning_split
from harness.pocket.world import document

Item = dict[str, object]


@dataclass(frozen=True)
class Rung:
    """Difficulty of a task; each field that a task uses makes it harder as it grows.

    Stories have `people` with `relations` facts each, stated in the `phrasings` most frequent phrasings (None: all),
    tales `people`, `things` and `steps`; `keys` code words come before `fillers` sentences of prose.
    """

    people: int = 0
    relations: int = 0
    phrasings: int | None = None
    keys: int = 0
    fillers: int = 0
    digits: int = 0
    operands: int = 2
    things: int = 0
    steps: int = 0


RUNGS = {
    "pocket_facts": Rung(people=4, relations=2, phrasings=2, fillers=2),
    "pocket_two_hop": Rung(people=3, things=1, steps=4),
    "pocket_crowd": Rung(people=12, relations=2, fillers=2),
    "pocket_recall": Rung(keys=2, fillers=22),
    "pocket_recall_far": Rung(keys=5, fillers=45),
    "pocket_sums": Rung(digits=2),
    "pocket_sums4": Rung(digits=4),
}


def _page(task: str, seed: int, index: int, write: Callable[[Page], None]) -> tuple[str, Page]:
    """A page of the task split with a question, and its id: of the pages that its draws give, the first such one."""
    draws = Draws("item", task, seed, index)
    while True:
        page = Page(draws, "tasks")
        write(page)
        if page.queries and owning_split(page.passage) == "tasks":
            return f"{task}/{seed}/{index}", page


def _choice_item(name: str, page: Page, query: Query, choices: int) -> Item:
    wrong = page.draws.shuffle(query.distractors)[: choices - 1]
    options = page.draws.shuffle([query.answer, *wrong])
    return {
        "id": name,
        "form": query.form,
        "prompt": f"{page.passage}\nQuestion: {query.question}\nAnswer:",
        "choices": options,
        "label": options.index(query.answer),
        "target": query.answer,
    }


def _story_item(task: str, seed: int, index: int) -> Item:
    """Multiple choice about one fact of a story; wrong choices are the values of other people in the story."""
    rung = RUNGS[task]

    def write(page: Page) -> None:
        scene = stories.cast(page.draws, rung.people, rung.relations, friends=False)
        page.say(stories.tell(page.draws, scene, rung.fillers, rung.phrasings))
        page.ask([stories.ask_forward(page.draws, scene, page.draws.shuffle(scene.facts)[0])])

    name, page = _page(task, seed, index, write)
    return _choice_item(name, page, page.queries[0], rung.people)


def _tale_item(task: str, seed: int, index: int) -> Item:
    """Multiple choice about a tale: locating a thing requires its holder and the holder's place."""
    rung = RUNGS[task]

    def write(page: Page) -> None:
        world = tales.World(page.draws, rung.people, rung.things)
        said = world.opening(page.draws) + [world.step(page.draws) for _ in range(rung.steps)]
        page.say("Tale: " + " ".join(said))
        asked = [query for query in world.queries() if query.form == "where_thing"]
        page.ask(page.draws.shuffle(asked)[:1])

    name, page = _page(task, seed, index, write)
    return _choice_item(name, page, page.queries[0], rung.people + 1)


def _recall_item(task: str, seed: int, index: int) -> Item:
    """Generation of a code word; all code words are at the start of the passage."""
    rung = RUNGS[task]

    def write(page: Page) -> None:
        prose.recall(page, keys=rung.keys, fillers=rung.fillers, queries=1, scattered=False)

    name, page = _page(task, seed, index, write)
    query = page.queries[0]
    prompt = f"{page.passage}\nQuestion: {query.question}\nAnswer:"
    return {"id": name, "prompt": prompt, "target": query.answer}


def _sum_item(task: str, seed: int, index: int) -> Item:
    rung = RUNGS[task]
    line = drills.draw_sum(Draws("item", task, seed, index), (rung.digits, rung.operands), fresh=True)
    # By its id a sum that is drawn twice is known as one.
    return {"id": f"{task}/{line.text}", "prompt": f"Sums:\n{line.text}", "target": line.result}


def _request_item(task: str, seed: int, index: int) -> Item:
    request = drills.draw_request(Draws("item", task, seed, index), fresh=True)
    return {
        "id": f"{task}/{seed}/{index}",
        "prompt": f"Chat:\nUser: {request.text}\nBot:",
        "choices": ["Sure", "No"],
        "label": int(request.declined),
        "target": "No" if request.declined else "Sure",
        "form": "decline" if request.declined else "answer",
        "pair": f"{request.verb} {request.thing}",
    }


def _prose_item(task: str, seed: int, index: int) -> Item:
    page = document("tasks", index, seed)
    return {"id": page.id, "kind": page.kind, "text": page.text, "entropy": page.entropy}


_WRITERS: dict[str, Callable[[str, int, int], Item]] = {
    "pocket_facts": _story_item,
    "pocket_two_hop": _tale_item,
    "pocket_crowd": _story_item,
    "pocket_recall": _recall_item,
    "pocket_recall_far": _recall_item,
    "pocket_sums": _sum_item,
    "pocket_sums4": _sum_item,
    "pocket_requests": _request_item,
    "pocket_prose": _prose_item,
}
TASKS = tuple(_WRITERS)
SHORT = ("pocket_sums", "pocket_requests")
"""Tasks whose draws often give a prompt again: about 1,500 sums of two digits and 848 requests are all there are."""


class TaskItems(Sequence[Item]):
    """The first ``count`` items of a task, each made when it is asked for; no item depends on ``count``.

    Those of the tasks of SHORT are all different; of 20,000 sums of four digits, 40 are drawn twice, with one id.
    Multiple choice and generation items have `prompt` and `target` (without its leading space); multiple choice adds
    `choices` and `label`; pocket_prose has `kind` and `text`. Raises ValueError on an unknown task.
    """

    def __init__(self, task: str, count: int, seed: int = 0) -> None:
        if task not in _WRITERS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}; got {task!r}")
        self._task, self._count, self._seed = task, count, seed
        self._made: dict[int, Item] = {}
        self._different = self._draw_different()

    @property
    def features(self) -> Item:
        """The fields of an item, as lm-eval asks a data set for them."""
        return self[0]

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"found the index {index}, expected one of {self._count} items")
        place = index % self._count
        while self._task in SHORT and place not in self._made:
            self._made[len(self._made)] = next(self._different)
        if place not in self._made:
            self._made[place] = _WRITERS[self._task](self._task, self._seed, place)
        return self._made[place]

    def _draw_different(self) -> Iterator[Item]:
        seen: set[object] = set()
        for index in count(0):
            item = _WRITERS[self._task](self._task, self._seed, index)
            if item["prompt"] not in seen:
                seen.add(item["prompt"])
                yield item


def task_items(task: str, count: int, seed: int = 0) -> list[Item]:
    """The first ``count`` items of a task, as JSON-able records with a stable `id` (see ``TaskItems``)."""
    return list(TaskItems(task, count, seed))
