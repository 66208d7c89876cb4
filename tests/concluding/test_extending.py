"""Runs that stop as soon as their rules are decided: where, on which rows, and that nothing else changes the answer."""

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
from harness.lockstep.batches import Block, plan_batches, plan_stages
from harness.measures.divergence import Divergence
from harness.measures.layer_error import LayerError
from harness.measures.memory import Memory
from harness.measures.outliers import Outliers
from harness.measures.perplexity import Perplexity
from harness.planning.specs import GateSpec, Plan, RuleSpec, SuiteSpec, VariantSpec
from harness.probes.channels import Channels
from harness.probes.layers import Layers
from harness.probes.tokens import Tokens
from harness.probes.weights import Weights
from harness.records import DocumentsSpec, Measurement, ModelSpec
from harness.rules import Rule
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse
from harness.run import run_group
from harness.statistics import planned_looks
from harness.tables.store import StoreReader
from tests.helpers.pass_pairs import make_documents
from tests.helpers.tiny_models import save, tiny_llama

MOST = 120
SIZES = planned_looks(20, MOST)
CLEAR = AtMost(metric="divergence.kl_mean", limit=5.0, why="any model keeps it")
NEVER = AtMost(metric="divergence.kl_max", limit=50.0, why="a maximum has no interval")
PROBES = (Channels(threshold=3.0), Layers(), Tokens(), Weights())


class Stop(Exception):  # noqa: N818
    """Ends a run from outside."""


class Progress:
    """A progress that ends the run before batch ``at`` of the shared pass."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at

    def step(self, what: str, done: int, of: int) -> None:
        if what == "shared pass" and done == self.at:
            raise Stop


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(tiny_llama(), folder / "reference")
    letters = "abcdefghijklmnopqrstuvwxyz" * 2
    # All different, also without white space: copies would be one cluster, and no further look.
    texts = [letters[at % 26 : at % 26 + 8 + at % 4 + at // 26 * 4] for at in range(MOST)]
    lines = [json.dumps({"text": text, "id": f"d{at}"}) for at, text in enumerate(texts)]
    (folder / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def make_plan(models: Path, name: str, *rules: Rule, bits: int = 4, least: int | None = 20, **more: Any) -> Plan:
    spec = DocumentsSpec(data=str(models / "texts.jsonl"), min=least, max=MOST, context=32)
    measures = (Divergence(), LayerError(), Memory(), Outliers(threshold=3.0), Perplexity())
    suite = SuiteSpec(name="suite", source="suite.yaml", documents=spec, measures=measures, probes=PROBES)
    specs = tuple(RuleSpec(rule=rule, where=f"gate.yaml:{at}") for at, rule in enumerate(rules, 1))
    return Plan(
        name=name,
        source=f"{name}.yaml",
        reference=ModelSpec(model=str(models / "reference")),
        variant=VariantSpec(compress=(RoundToNearest(bits=bits, granularity="channel"),)),
        suites=(suite,),
        gates=(GateSpec(name="gate", source="gate.yaml", rules=specs, **more),),
    )


def run(plans: Sequence[Plan], folder: Path, at: int | None = None) -> list[Observed]:
    found = run_group(plans, [folder / plan.name for plan in plans], Progress(at))
    for each in found:
        assert not isinstance(each, HarnessError), each
    return [each for each in found if isinstance(each, Observed)]


def measured(observed: Observed) -> dict[str, Measurement]:
    return {f"{m.name}{sorted(m.labels.items())}": m for m in observed.measurements}


def rows(folder: Path, name: str, table: str) -> pd.DataFrame:
    frame = StoreReader(folder / name / "tables").read("suite", table)
    assert frame is not None
    return frame


def middle(models: Path, folder: Path) -> float:
    """A limit of the mean KL that takes some looks, but not all, to decide."""
    (observed,) = run([make_plan(models, "all", NEVER)], folder / "probe")
    (kl,) = [m for m in observed.measurements if m.name == "divergence.kl_mean"]
    assert kl.change is not None
    assert kl.high is not None
    return kl.change + 1.6 * (kl.high - kl.change)


def test_a_clear_rule_ends_it_at_the_first_look(models: Path, tmp_path: Path) -> None:
    (observed,) = run([make_plan(models, "clear", CLEAR)], tmp_path)
    stop = observed.stops["suite"]
    assert (stop.looks, stop.documents, stop.undecided) == (SIZES, 20, ())
    assert stop.watched == ("at_most divergence.kl_mean",)
    assert stop.fixed is not None
    drawn = rows(tmp_path, "clear", "tokens")["document"]
    assert sorted(drawn.unique()) == list(range(20))
    assert len(rows(tmp_path, "clear", "documents")) == MOST, "what could have been drawn is known"
    kl = measured(observed)["divergence.kl_mean[]"]
    assert (kl.clusters, kl.confidence) == (20, 0.95)
    assert "group-sequential, look 1 at 20 of at most 120 documents" in kl.method
    assert kl.high is not None
    assert kl.high < 5.0
    assert measured(observed)["memory.weight_bytes[]"].method.startswith("exact"), "own probes are as ever"


def test_documents_come_in_a_random_order_that_the_seed_fixes(models: Path, tmp_path: Path) -> None:
    run([make_plan(models, "a", CLEAR), make_plan(models, "b", CLEAR, bits=3)], tmp_path)
    first, second = (rows(tmp_path, name, "documents")["id"].tolist() for name in "ab")
    assert first == second
    assert sorted(first) == sorted(f"d{at}" for at in range(MOST))
    assert first != [f"d{at}" for at in range(MOST)]
    plan = make_plan(models, "c", CLEAR)
    documents = plan.suites[0].documents
    assert documents is not None
    spec = documents.model_copy(update={"seed": 1})
    suite = plan.suites[0].model_copy(update={"documents": spec})
    run([plan.model_copy(update={"suites": (suite,)})], tmp_path)
    assert rows(tmp_path, "c", "documents")["id"].tolist() != first


def test_an_undecided_rule_takes_all_documents_and_says_so(models: Path, tmp_path: Path) -> None:
    (observed,) = run([make_plan(models, "never", CLEAR, NEVER)], tmp_path)
    stop = observed.stops["suite"]
    assert stop.documents == MOST
    assert stop.undecided == ("at_most divergence.kl_max",)
    assert measured(observed)["divergence.kl_mean[]"].clusters == MOST


def test_a_blocking_rule_that_failed_ends_it_though_another_is_undecided(models: Path, tmp_path: Path) -> None:
    """No further document can make the variant pass; a warning that fails leaves that open."""
    failing = CLEAR.model_copy(update={"limit": 1e-9})
    (observed,) = run([make_plan(models, "failed", failing, NEVER)], tmp_path)
    stop = observed.stops["suite"]
    assert (stop.documents, stop.undecided) == (20, ("at_most divergence.kl_max",))
    warning = failing.model_copy(update={"level": "warn", "on_inconclusive": "extend"})
    (observed,) = run([make_plan(models, "warned", warning, NEVER)], tmp_path)
    assert observed.stops["suite"].documents == MOST


def test_broken_documents_are_decided_though_hardly_more_could_be_drawn_than_they_need(
    models: Path, tmp_path: Path
) -> None:
    rule = AtMost(metric="perplexity.broken_documents", limit=0.05, why="as in the gate ship")
    (observed,) = run([make_plan(models, "whole", rule, bits=8)], tmp_path)
    stop = observed.stops["suite"]
    assert stop.documents == next(size for size in SIZES if size >= 83) < MOST
    (share,) = [m for m in observed.measurements if m.name == "perplexity.broken_documents"]
    assert (share.clusters, "valid at any look" in share.method) == (stop.documents, True)
    assert share.labels["worst_document"] in rows(tmp_path, "whole", "documents")["id"].tolist()


def test_where_no_rule_waits_all_documents_are_drawn(models: Path, tmp_path: Path) -> None:
    point = CLEAR.model_copy(update={"decide": "point"})
    (observed,) = run([make_plan(models, "point", point)], tmp_path)
    stop = observed.stops["suite"]
    assert (stop.documents, stop.watched, stop.undecided, stop.fixed) == (MOST, (), (), None)


def test_a_rule_in_between_takes_as_many_looks_as_it_needs(models: Path, tmp_path: Path) -> None:
    limit = middle(models, tmp_path)
    rule = AtMost(metric="divergence.kl_mean", limit=limit, why="near")
    (observed,) = run([make_plan(models, "near", rule)], tmp_path)
    stop = observed.stops["suite"]
    assert 20 < stop.documents < MOST
    assert stop.undecided == ()
    number = SIZES.index(stop.documents)
    kl = measured(observed)["divergence.kl_mean[]"]
    assert kl.clusters == stop.documents
    assert f"look {number + 1} at {stop.documents} of at most {MOST}" in kl.method


@pytest.mark.parametrize("at", [0, 4])
def test_a_killed_run_stops_at_the_same_place(
    models: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the beginning, and with some batches of the second look already there."""
    monkeypatch.setattr("harness.lockstep.driver.CPU_TOKENS", 128)
    rule = AtMost(metric="divergence.kl_mean", limit=middle(models, tmp_path), why="near")
    plan = make_plan(models, "near", rule)
    (whole,) = run([plan], tmp_path / "whole")
    with pytest.raises(Stop):
        run([plan], tmp_path / "killed", at)
    (again,) = run([plan], tmp_path / "killed")
    assert again.stops == whole.stops
    assert measured(again) == measured(whole)
    for table in ("tokens", "layers", "channels"):
        left, right = (rows(tmp_path / where, "near", table) for where in ("killed", "whole"))
        pd.testing.assert_frame_equal(left, right)
    (finished,) = run([plan], tmp_path / "killed", at=0)
    assert measured(finished) == measured(whole), "a finished run runs no batch again"


def test_each_variant_stops_by_itself(models: Path, tmp_path: Path) -> None:
    rule = AtMost(metric="divergence.kl_mean", limit=middle(models, tmp_path), why="near")
    plans = [make_plan(models, "near", rule), make_plan(models, "fine", rule, bits=8)]
    plans.append(make_plan(models, "never", NEVER))
    together = run(plans, tmp_path / "together")
    stopped = [observed.stops["suite"].documents for observed in together]
    assert stopped[1] == 20 < stopped[0] < stopped[2] == MOST
    for plan, observed in zip(plans, together, strict=True):
        (alone,) = run([plan], tmp_path / "alone")
        assert alone.stops == observed.stops
        assert measured(alone) == measured(observed)
        drawn = rows(tmp_path / "together", plan.name, "tokens")["document"].nunique()
        assert drawn == observed.stops["suite"].documents


def test_more_documents_are_asked_of_a_rule_than_the_first_look_has(models: Path, tmp_path: Path) -> None:
    (observed,) = run([make_plan(models, "more", CLEAR.model_copy(update={"min_documents": 50}))], tmp_path)
    assert observed.stops["suite"].documents == next(size for size in SIZES if size >= 50)


def test_betting_is_what_the_gate_names(models: Path, tmp_path: Path) -> None:
    rule = NotWorse(metric="divergence.top1_agreement", margin=0.95, why="loose")
    (observed,) = run([make_plan(models, "bet", rule, sequential="betting")], tmp_path)
    assert "betting on" in measured(observed)["divergence.top1_agreement[]"].method
    assert "group-sequential" in measured(observed)["divergence.kl_mean[]"].method


def test_a_fixed_size_is_what_it_was(models: Path, tmp_path: Path) -> None:
    (observed,) = run([make_plan(models, "fixed", CLEAR, least=None)], tmp_path)
    assert observed.stops == {}
    assert rows(tmp_path, "fixed", "documents")["id"].tolist() == [f"d{at}" for at in range(MOST)]
    kl = measured(observed)["divergence.kl_mean[]"]
    assert (kl.clusters, "look" in kl.method) == (MOST, False)


def test_other_rules_begin_anew(models: Path, tmp_path: Path) -> None:
    """Running totals have no documents, so tables that another rule stopped elsewhere are not taken over."""
    (first,) = run([make_plan(models, "same", NEVER)], tmp_path)
    (second,) = run([make_plan(models, "same", CLEAR)], tmp_path)
    (fresh,) = run([make_plan(models, "fresh", CLEAR)], tmp_path)
    assert first.data_key != second.data_key
    assert measured(second) == measured(fresh)
    reworded = CLEAR.model_copy(update={"why": "another reason"})
    assert run([make_plan(models, "same", reworded)], tmp_path)[0].data_key == second.data_key


def test_stages_hold_every_document_once_and_number_their_batches_through() -> None:
    documents = make_documents([9, 1, 23, 2, 23, 14, 5, 31, 12, 0, 7])
    stages = plan_stages(documents, 40, (3, 5, 9))
    drawn = [sorted(d.index for block in stage for b in block.batches for d in b.documents) for stage in stages]
    assert drawn == [[0, 2, 3], [4, 5], [6, 7, 8, 10]]
    units = [block.unit for stage in stages for block in stage]
    assert units == [f"pass/{number}" for number in range(len(units))]
    batches = [batch.index for stage in stages for block in stage for batch in block.batches]
    assert batches == list(range(len(batches)))
    assert plan_stages(documents, 40) == [[Block(each.index, (each,)) for each in plan_batches(documents, 40)]]


def test_many_batches_form_blocks_of_equal_size() -> None:
    documents = make_documents([5] * 500)
    (stage,) = plan_stages(documents, 10)
    assert [len(block.batches) for block in stage] == [8] * 31 + [2]
    assert [batch for block in stage for batch in block.batches] == plan_batches(documents, 10)
