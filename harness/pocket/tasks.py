"""Items of the pocket tasks, from easy ones that the reference always solves to hard ones where it makes mistakes.

An easy task detects breakage, a hard one reacts to mild degradation. The difficulty is defined in RUNGS alone; it was
chosen once, on the bundled model, and affects no document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.pocket import drills, prose, stories, tales
from harness.pocket.draws import Draws
from harness.pocket.page import Page, Query, owning_split
from harness.pocket.world import documents

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


def _passages(task: str, seed: int, write: Callable[[Page], None]) -> Iterator[tuple[str, Page]]:
    """Pages of the task split, with stable ids."""
    index = 0
    while True:
        page = Page(Draws("item", task, seed, index), "tasks")
        write(page)
        if owning_split(page.passage) == "tasks":
            yield f"{task}/{seed}/{index}", page
        index += 1


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


def _story_items(task: str, seed: int, rung: Rung, choices: int) -> Iterator[Item]:
    """Multiple choice about one fact of a story; wrong choices are the values of other people in the story."""

    def write(page: Page) -> None:
        scene = stories.cast(page.draws, rung.people, rung.relations, friends=False)
        page.say(stories.tell(page.draws, scene, rung.fillers, rung.phrasings))
        page.ask([stories.ask_forward(page.draws, scene, page.draws.shuffle(scene.facts)[0])])

    for name, page in _passages(task, seed, write):
        yield _choice_item(name, page, page.queries[0], choices)


def _tale_items(task: str, seed: int, rung: Rung) -> Iterator[Item]:
    """Multiple choice about a tale: locating a thing requires its holder and the holder's place."""

    def write(page: Page) -> None:
        world = tales.World(page.draws, rung.people, rung.things)
        said = world.opening(page.draws) + [world.step(page.draws) for _ in range(rung.steps)]
        page.say("Tale: " + " ".join(said))
        asked = [query for query in world.queries() if query.form == "where_thing"]
        page.ask(page.draws.shuffle(asked)[:1])

    for name, page in _passages(task, seed, write):
        if page.queries:
            yield _choice_item(name, page, page.queries[0], rung.people + 1)


def _recall_items(task: str, seed: int, rung: Rung) -> Iterator[Item]:
    """Generation of a code word; all code words are at the start of the passage."""

    def write(page: Page) -> None:
        prose.recall(page, keys=rung.keys, fillers=rung.fillers, queries=1, scattered=False)

    for name, page in _passages(task, seed, write):
        query = page.queries[0]
        prompt = f"{page.passage}\nQuestion: {query.question}\nAnswer:"
        yield {"id": name, "prompt": prompt, "target": query.answer}


def _sum_items(task: str, seed: int, rung: Rung) -> Iterator[Item]:
    index = 0
    while True:
        line = drills.draw_sum(Draws("item", task, seed, index), (rung.digits, rung.operands), fresh=True)
        yield {"id": f"{task}/{seed}/{index}", "prompt": f"Sums:\n{line.text}", "target": line.result}
        index += 1


def _request_items(task: str, seed: int) -> Iterator[Item]:
    index = 0
    while True:
        request = drills.draw_request(Draws("item", task, seed, index), fresh=True)
        yield {
            "id": f"{task}/{seed}/{index}",
            "prompt": f"Chat:\nUser: {request.text}\nBot:",
            "choices": ["Sure", "No"],
            "label": int(request.declined),
            "target": "No" if request.declined else "Sure",
            "form": "decline" if request.declined else "answer",
            "pair": f"{request.verb} {request.thing}",
        }
        index += 1


def _items(task: str, seed: int) -> Iterator[Item]:
    rung = RUNGS.get(task, Rung())
    if task == "pocket_facts":
        return _story_items(task, seed, rung, 4)
    if task == "pocket_crowd":
        return _story_items(task, seed, rung, rung.people)
    if task == "pocket_two_hop":
        return _tale_items(task, seed, rung)
    if task in ("pocket_recall", "pocket_recall_far"):
        return _recall_items(task, seed, rung)
    if task in ("pocket_sums", "pocket_sums4"):
        return _sum_items(task, seed, rung)
    if task == "pocket_requests":
        return _request_items(task, seed)
    raise ValueError(f"task: expected one of {', '.join(TASKS)}; got {task!r}")


TASKS = (*RUNGS, "pocket_requests", "pocket_prose")


def task_items(task: str, count: int, seed: int = 0) -> list[Item]:
    """The first `count` different items of a task, as JSON-able records with a stable `id`.

    Multiple choice and generation items have `prompt` and `target` (without its leading space); multiple
    choice adds `choices` and `label`; pocket_prose has `kind` and `text`. Raises ValueError on an unknown
    task.
    """
    if task == "pocket_prose":
        pages = documents("tasks", count, seed)
        return [{"id": page.id, "kind": page.kind, "text": page.text, "entropy": page.entropy} for page in pages]
    items: dict[object, Item] = {}
    for item in _items(task, seed):
        if len(items) == count:
            break
        items.setdefault(item["prompt"], item)
    return list(items.values())
