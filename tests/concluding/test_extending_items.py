"""Items of tasks that are drawn until their rules are decided: where that stops, and what it depends on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.backends.round_to_nearest import RoundToNearest
from harness.concluding.pair import Observed
from harness.errors import HarnessError
from harness.measures.divergence import Divergence
from harness.measures.tasks import Tasks
from harness.planning.specs import GateSpec, Plan, RuleSpec, SuiteSpec, VariantSpec
from harness.probes.items import Items
from harness.probes.tokens import Tokens
from harness.records import DocumentsSpec, ItemsSpec, Measurement, ModelSpec
from harness.rules import Rule
from harness.rules.at_least import AtLeast
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse
from harness.run import run_group
from harness.sharing.merging import merge_parts
from harness.sharing.observe import run_share
from harness.sharing.shards import Share, find_parts
from harness.statistics import planned_looks
from harness.tables.store import StoreReader
from tests.helpers.tiny_models import save, tiny_llama

LEAST, MOST, THERE = 20, 60, 90
TEXTS = 30
SIZES = planned_looks(LEAST, MOST)
CLEAR = NotWorse(metric="tasks.*.accuracy", margin=0.9, why="anything is well within it")
NEVER = NotWorse(metric="tasks.*.accuracy", margin=0.001, why="no number of items decides it")
BROKEN = AtLeast(metric="tasks.first.accuracy", limit=0.97, why="no chance")
OPEN = NotWorse(metric="tasks.second.accuracy", margin=0.001, why="no number of items decides it")
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: q
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


class Stop(Exception):  # noqa: N818
    """Ends a run from outside."""


class Progress:
    """A progress that ends the run when a side of a task is scored for the ``at``-th time."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.stages = 0

    def step(self, what: str, done: int, of: int) -> None:
        if what.startswith("task ") and done == 1:
            if self.stages == self.at:
                raise Stop
            self.stages += 1


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(tiny_llama(), folder / "reference")
    letters = "abcdefghijklmnopqrstuvwxyz" * 4
    lines = (json.dumps({"text": letters[at : at + 8 + at % 4], "id": f"d{at}"}) for at in range(TEXTS))
    (folder / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, start in (("first", 0), ("second", 7)):
        texts = [letters[at % 26 : at % 26 + 5 + at // 26 * 3] for at in range(start, start + THERE)]
        rows = ({"q": q, "choices": ["x", "yy", "za"], "label": n % 3, "page": n // 3} for n, q in enumerate(texts))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(TASK.format(name=name), encoding="utf-8")
    return folder


def make_plan(
    models: Path, name: str, *rules: Rule, bits: int = 4, tasks: Sequence[str] = ("first",), **items: Any
) -> Plan:
    drawn = ItemsSpec(**({"min": LEAST, "max": MOST} | items))
    settings: dict[str, Any] = {"tasks": tuple(tasks), "include": (str(models),), "items": drawn, "bos": False}
    suite = SuiteSpec(name="suite", source="s.yaml", measures=(Tasks(**settings),), probes=(Items(**settings),))
    specs = tuple(RuleSpec(rule=rule, where=f"gate.yaml:{at}") for at, rule in enumerate(rules, 1))
    return Plan(
        name=name,
        source=f"{name}.yaml",
        reference=ModelSpec(model=str(models / "reference")),
        variant=VariantSpec(compress=(RoundToNearest(bits=bits, granularity="channel"),)),
        suites=(suite,),
        gates=(GateSpec(name="gate", source="gate.yaml", rules=specs),),
    )


def run(plans: Sequence[Plan], folder: Path, at: int | None = None, scored: list[str] | None = None) -> list[Observed]:
    with pytest.MonkeyPatch.context() as patch:
        if scored is not None:
            patch.setattr(Items, "_evaluate_side", note_sides(scored))
        found = run_group(plans, [folder / plan.name for plan in plans], Progress(at))
    for each in found:
        assert not isinstance(each, HarnessError), each
    return [each for each in found if isinstance(each, Observed)]


def read(folder: Path, name: str, table: str = "items") -> pd.DataFrame:
    frame = StoreReader(folder / name / "tables").read("suite", table)
    assert frame is not None
    return frame


def accuracy(observed: Observed, task: str = "first") -> Measurement:
    (found,) = (each for each in observed.measurements if each.name == f"tasks.{task}.accuracy")
    return found


def note_sides(scored: list[str]) -> Any:
    """The method that scores a side of a task, which notes whose it was."""
    plain = Items._evaluate_side

    def evaluate(self: Items, task: Any, manager: Any, scorer: Any, why: str) -> Any:
        scored.append(scorer.name)
        return plain(self, task, manager, scorer, why)

    return evaluate


def estimates(models: Path, folder: Path, task: str) -> list[float]:
    """The accuracy of the variant on a task at every look."""
    rule = NEVER.model_copy(update={"metric": f"tasks.{task}.accuracy"})
    run([make_plan(models, "seen", rule, tasks=("first", "second"))], folder)
    order, rows = read(folder, "seen", "item_order"), read(folder, "seen")
    drawn = order[order["task"] == task]["doc_id"]
    scores = rows[rows["task"] == task].set_index("doc_id")["variant_score"]
    return [float(scores[drawn[:size]].mean()) for size in SIZES]


def middle(models: Path, folder: Path) -> float:
    """A margin that takes some looks, but not all, to decide."""
    (observed,) = run([make_plan(models, "all", NEVER)], folder / "probe")
    found = accuracy(observed)
    assert found.change is not None
    assert found.low is not None
    return -(found.change + 1.9 * (found.low - found.change))


def test_a_clear_rule_ends_its_task_at_the_first_look(models: Path, tmp_path: Path) -> None:
    (observed,) = run([make_plan(models, "clear", CLEAR)], tmp_path)
    (stop,) = observed.stops.values()
    assert (stop.suite, stop.task, stop.looks, stop.documents) == ("suite", "first", SIZES, LEAST)
    assert (stop.watched, stop.undecided) == (("not_worse tasks.*.accuracy",), ())
    assert len(read(tmp_path, "clear")) == LEAST
    found = accuracy(observed)
    assert (found.n, found.confidence) == (LEAST, 0.95)
    assert f"look 1 at {LEAST} of at most {MOST} items" in found.method


def test_a_rule_that_nothing_decides_takes_all_items_and_says_so(models: Path, tmp_path: Path) -> None:
    (observed,) = run([make_plan(models, "never", NEVER)], tmp_path)
    (stop,) = observed.stops.values()
    assert (stop.documents, stop.undecided) == (MOST, ("not_worse tasks.first.accuracy",))
    assert accuracy(observed).n == MOST < THERE


def test_each_task_stops_by_itself(models: Path, tmp_path: Path) -> None:
    never = NEVER.model_copy(update={"metric": "tasks.second.accuracy"})
    clear = CLEAR.model_copy(update={"metric": "tasks.first.accuracy"})
    (observed,) = run([make_plan(models, "two", clear, never, tasks=("first", "second"))], tmp_path)
    assert {stop.task: stop.documents for stop in observed.stops.values()} == {"first": LEAST, "second": MOST}
    assert (accuracy(observed).n, accuracy(observed, "second").n) == (LEAST, MOST)


def test_a_task_that_no_rule_waits_for_is_drawn_whole(models: Path, tmp_path: Path) -> None:
    elsewhere = CLEAR.model_copy(update={"metric": "tasks.first.accuracy"})
    (observed,) = run([make_plan(models, "whole", elsewhere, tasks=("first", "second"))], tmp_path)
    assert {stop.task: (stop.documents, stop.watched != ()) for stop in observed.stops.values()} == {
        "first": (LEAST, True),
        "second": (MOST, False),
    }


def test_once_a_rule_has_failed_nothing_more_is_drawn(models: Path, tmp_path: Path) -> None:
    plan = make_plan(models, "broken", BROKEN, OPEN, tasks=("first", "second"))
    (observed,) = run([plan], tmp_path)
    first, second = observed.stops.values()
    assert (first.task, first.documents, first.undecided, first.failed) == ("first", LEAST, (), ())
    assert (second.task, second.documents, second.undecided) == ("second", LEAST, ("not_worse tasks.second.accuracy",))
    assert second.failed == ("at_least tasks.first.accuracy",)
    assert [len(frame) for _, frame in read(tmp_path, "broken").groupby("task")] == [LEAST, LEAST]
    assert accuracy(observed, "second").n == LEAST, "what was seen of it is reported"


def test_a_task_that_no_rule_waits_for_is_not_drawn_whole_for_a_variant_that_failed(
    models: Path, tmp_path: Path
) -> None:
    (observed,) = run([make_plan(models, "broken", BROKEN, tasks=("first", "second"))], tmp_path)
    second = observed.stops["suite second"]
    assert (second.documents, second.watched, second.failed) == (LEAST, (), ("at_least tasks.first.accuracy",))


def test_a_suite_may_have_everything_decided(models: Path, tmp_path: Path) -> None:
    plan = make_plan(models, "all", BROKEN, OPEN, tasks=("first", "second"), after_failure="continue")
    (observed,) = run([plan], tmp_path)
    assert {stop.task: (stop.documents, stop.failed) for stop in observed.stops.values()} == {
        "first": (LEAST, ()),
        "second": (MOST, ()),
    }


@pytest.mark.parametrize(("limit", "drawn"), [(1e-9, LEAST), (9.0, MOST)])
@pytest.mark.parametrize("least", [None, 20])
def test_documents_that_fail_end_the_tasks(
    models: Path, tmp_path: Path, limit: float, drawn: int, least: int | None
) -> None:
    """Whether all documents are measured, or those that decide."""
    kl = AtMost(metric="divergence.kl_mean", limit=limit, why="what documents say")
    plan = make_plan(models, "texts", kl, NEVER)
    (suite,) = plan.suites
    documents = DocumentsSpec(data=str(models / "texts.jsonl"), min=least, max=TEXTS, context=32)
    both = {"documents": documents, "measures": (*suite.measures, Divergence()), "probes": (*suite.probes, Tokens())}
    (observed,) = run([plan.model_copy(update={"suites": (suite.model_copy(update=both),)})], tmp_path)
    stop = observed.stops["suite first"]
    assert (stop.documents, stop.failed) == (drawn, ("at_most divergence.kl_mean",) if drawn == LEAST else ())


def test_an_advisory_failure_ends_nothing(models: Path, tmp_path: Path) -> None:
    advisory = BROKEN.model_copy(update={"level": "warn", "on_inconclusive": "extend"})
    (observed,) = run([make_plan(models, "warned", advisory, OPEN, tasks=("first", "second"))], tmp_path)
    assert observed.stops["suite second"].documents == MOST


def test_what_is_likely_to_fail_is_drawn_first(models: Path, tmp_path: Path) -> None:
    """The second task's estimate is beyond its limit at the first look, and enough items confirm it; the first task,
    whose estimate is within its limit, would have taken all items."""
    seen = {task: estimates(models, tmp_path / task, task) for task in ("first", "second")}
    suspect = AtLeast(metric="tasks.second.accuracy", limit=max(seen["second"]) + 0.25, why="likely to fail")
    near = AtLeast(metric="tasks.first.accuracy", limit=min(seen["first"]) - 1e-6, why="within, and close")
    (observed,) = run([make_plan(models, "order", near, suspect, tasks=("first", "second"))], tmp_path)
    first, second = observed.stops["suite first"], observed.stops["suite second"]
    assert second.documents > LEAST
    assert (first.documents, first.failed) == (LEAST, ("at_least tasks.second.accuracy",))


def test_variants_that_draw_in_another_order_score_the_reference_once(models: Path, tmp_path: Path) -> None:
    """Together and alone they stop at the same places with the same numbers."""
    tasks, highest = ("first", "second"), max(estimates(models, tmp_path / "seen", "second"))
    suspect = AtLeast(metric="tasks.second.accuracy", limit=highest + 0.01, why="likely to fail, and close")
    plans = [make_plan(models, "suspect", suspect, tasks=tasks), make_plan(models, "whole", NEVER, tasks=tasks)]
    scored: list[str] = []
    together = run(plans, tmp_path / "together", scored=scored)
    assert {name: scored.count(name) for name in set(scored)} == dict.fromkeys(
        ("reference", "suspect", "whole"), 2 * len(SIZES)
    )
    for plan, observed in zip(plans, together, strict=True):
        (alone,) = run([plan], tmp_path / "alone")
        assert alone.stops == observed.stops
        assert alone.measurements == observed.measurements


def test_the_seed_fixes_the_order_for_every_variant(models: Path, tmp_path: Path) -> None:
    run([make_plan(models, "a", CLEAR), make_plan(models, "b", CLEAR, bits=3)], tmp_path)
    first, second = (sorted(read(tmp_path, name)["doc_id"]) for name in "ab")
    assert first == second != list(range(LEAST))
    run([make_plan(models, "c", CLEAR, seed=1)], tmp_path)
    assert sorted(read(tmp_path, "c")["doc_id"]) != first
    order = read(tmp_path, "a", "item_order")
    assert set(order["doc_id"][order["stage"] == 0]) == set(first)
    assert len(order) == MOST


def test_what_a_look_says_does_not_depend_on_items_that_others_scored_already(models: Path, tmp_path: Path) -> None:
    """Variants together and alone stop at the same place with the same numbers, though they share the reference."""
    rule = NotWorse(metric="tasks.first.accuracy", margin=middle(models, tmp_path), why="near")
    plans = [make_plan(models, "near", rule), make_plan(models, "fine", rule, bits=8)]
    plans.append(make_plan(models, "never", NEVER))
    together = run(plans, tmp_path / "together")
    stopped = [next(iter(observed.stops.values())).documents for observed in together]
    assert stopped[1] < stopped[2] == MOST
    assert LEAST < stopped[0] < MOST
    for plan, observed in zip(plans, together, strict=True):
        (alone,) = run([plan], tmp_path / "alone")
        assert alone.stops == observed.stops
        assert alone.measurements == observed.measurements
        assert len(read(tmp_path / "together", plan.name)) == next(iter(observed.stops.values())).documents


@pytest.mark.parametrize("at", [0, 2])
def test_a_killed_run_goes_on_at_its_stage_and_gives_the_same_bits(models: Path, tmp_path: Path, at: int) -> None:
    plan = make_plan(models, "near", NEVER, tasks=("first", "second"))
    (whole,) = run([plan], tmp_path / "whole")
    with pytest.raises(Stop):
        run([plan], tmp_path / "killed", at)
    reader = StoreReader(tmp_path / "killed" / "near" / "tables")
    assert reader.units("suite") == ("items:first/0", "items:second/0")[:at]
    (again,) = run([plan], tmp_path / "killed")
    assert again.stops == whole.stops
    assert again.measurements == whole.measurements
    for table in ("items", "item_order", "item_texts", "scoring"):
        left, right = (read(tmp_path / where, "near", table) for where in ("killed", "whole"))
        pd.testing.assert_frame_equal(left, right)
    (finished,) = run([plan], tmp_path / "killed", at=0)
    assert finished.measurements == whole.measurements, "a finished run scores nothing again"


def test_other_rules_begin_anew(models: Path, tmp_path: Path) -> None:
    (first,) = run([make_plan(models, "same", NEVER)], tmp_path)
    (second,) = run([make_plan(models, "same", CLEAR)], tmp_path)
    assert first.data_key != second.data_key
    assert accuracy(second).n == LEAST
    reworded = CLEAR.model_copy(update={"why": "another reason"})
    assert run([make_plan(models, "same", reworded)], tmp_path)[0].data_key == second.data_key


def test_items_of_one_passage_are_one_cluster(models: Path, tmp_path: Path) -> None:
    (observed,) = run([make_plan(models, "pages", NEVER, passage="page")], tmp_path)
    found = accuracy(observed)
    pages = read(tmp_path, "pages", "item_order")["doc_id"] // 3
    assert (found.n, found.clusters) == (MOST, pages.nunique())
    assert found.clusters < MOST


def test_a_passage_that_the_data_lacks_is_named_with_the_fields_there_are(models: Path, tmp_path: Path) -> None:
    (error,) = run_group([make_plan(models, "pages", NEVER, passage="story")], [tmp_path / "pages"], Progress())
    assert isinstance(error, HarnessError)
    assert "task first: items names the passage 'story', and the data has q, choices, label, page" in str(error)


@pytest.mark.parametrize(("of", "rules"), [(1, ()), (3, ()), (2, (BROKEN, OPEN))])
def test_shards_compute_every_stage_and_the_merge_takes_what_a_run_would(
    models: Path, tmp_path: Path, of: int, rules: tuple[Rule, ...]
) -> None:
    near = NotWorse(metric="tasks.first.accuracy", margin=middle(models, tmp_path), why="near")
    plan = make_plan(models, "near", *(rules or (near,)), tasks=("first", "second"))
    (whole,) = run([plan], tmp_path / "whole")
    folders = [tmp_path / f"shard-{number}" / "near" for number in range(1, of + 1)]
    for number, folder in enumerate(folders, 1):
        (pair,) = run_share([plan], [folder], Share(number, of), Progress())
        assert not isinstance(pair, HarnessError), pair
    everything = [f"items:{task}/{stage}" for task in ("first", "second") for stage in range(len(SIZES))]
    (parts,) = find_parts(folders).values()
    assert [unit.name for unit in parts[0].shard.units if unit.kind == "items"] == everything
    held = [unit for folder in folders for unit in StoreReader(folder / "tables").units("suite")]
    assert sorted(held) == sorted(everything), "each by one shard, whatever the rules"
    merged = merge_parts(plan, parts, tmp_path / "merged" / "near").observed
    assert merged.stops == whole.stops
    assert merged.measurements == whole.measurements
    for table in ("items", "item_order", "item_texts", "scoring"):
        left, right = (read(tmp_path / where, "near", table) for where in ("merged", "whole"))
        pd.testing.assert_frame_equal(left, right)
