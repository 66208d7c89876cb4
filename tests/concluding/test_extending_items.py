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
from harness.measures.tasks import Tasks
from harness.planning.specs import GateSpec, Plan, RuleSpec, SuiteSpec, VariantSpec
from harness.probes.items import Items
from harness.records import ItemsSpec, Measurement, ModelSpec
from harness.rules import Rule
from harness.rules.not_worse import NotWorse
from harness.run import run_group
from harness.sharing.merging import merge_parts
from harness.sharing.observe import run_share
from harness.sharing.shards import Share, find_parts
from harness.statistics import planned_looks
from harness.tables.store import StoreReader
from tests.helpers.tiny_models import save, tiny_llama

LEAST, MOST, THERE = 20, 60, 90
SIZES = planned_looks(LEAST, MOST)
CLEAR = NotWorse(metric="tasks.*.accuracy", margin=0.9, why="anything is well within it")
NEVER = NotWorse(metric="tasks.*.accuracy", margin=0.001, why="no number of items decides it")
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
        self.left = at

    def step(self, what: str, done: int, of: int) -> None:
        if self.left is not None and what.startswith("task ") and done == 1:
            self.left -= 1
            if self.left < 0:
                raise Stop


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(tiny_llama(), folder / "reference")
    letters = "abcdefghijklmnopqrstuvwxyz" * 4
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


def run(plans: Sequence[Plan], folder: Path, at: int | None = None) -> list[Observed]:
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
    assert reader.units("suite") == tuple(f"items:first/{stage}" for stage in range(at))
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


@pytest.mark.parametrize("of", [1, 3])
def test_shards_compute_every_stage_and_the_merge_takes_what_a_run_would(models: Path, tmp_path: Path, of: int) -> None:
    rule = NotWorse(metric="tasks.first.accuracy", margin=middle(models, tmp_path), why="near")
    plan = make_plan(models, "near", rule, tasks=("first", "second"))
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
