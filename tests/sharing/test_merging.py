"""Shards of a run: put together they are the run of one process, bit by bit; anything else is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.backends.round_to_nearest import RoundToNearest
from harness.concluding.pair import Observed, Unit
from harness.errors import HarnessError, MergeError
from harness.measures.divergence import Divergence
from harness.measures.layer_error import LayerError
from harness.measures.memory import Memory
from harness.measures.outliers import Outliers
from harness.measures.perplexity import Perplexity
from harness.planning.specs import GateSpec, Plan, RuleSpec, SuiteSpec, VariantSpec
from harness.probes.channels import Channels
from harness.probes.coverage import Coverage
from harness.probes.layers import Layers
from harness.probes.tokens import Tokens
from harness.probes.weights import Weights
from harness.records import DocumentsSpec, ModelSpec, NoiseFloorSpec
from harness.rules import Rule
from harness.rules.at_most import AtMost
from harness.run import run_group
from harness.sharing.merging import check_parts, merge_parts
from harness.sharing.observe import run_share
from harness.sharing.shards import SHARD_FILE, Share, find_parts
from harness.tables.store import StoreReader
from tests.helpers.pass_pairs import Silent, as_bytes
from tests.helpers.tiny_models import save, tiny_llama

MOST = 60
PROBES = (Channels(threshold=3.0), Coverage(), Layers(), Tokens(), Weights())
MEASURES = (Divergence(), LayerError(), Memory(), Outliers(threshold=3.0), Perplexity())
NEVER = AtMost(metric="divergence.kl_max", limit=50.0, why="a maximum has no interval")
CLEAR = AtMost(metric="divergence.kl_mean", limit=5.0, why="any model keeps it")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(tiny_llama(), folder / "reference")
    letters = "abcdefghijklmnopqrstuvwxyz" * 2
    texts = [letters[at % 26 : at % 26 + 8 + at % 4 + at // 26 * 4] for at in range(MOST)]
    lines = [json.dumps({"text": text, "id": f"d{at}"}) for at, text in enumerate(texts)]
    (folder / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def make_plan(models: Path, name: str, rule: Rule = NEVER, bits: int = 4, least: int | None = 20) -> Plan:
    spec = DocumentsSpec(data=str(models / "texts.jsonl"), min=least, max=MOST, context=32)
    suite = SuiteSpec(
        name="suite",
        source="suite.yaml",
        documents=spec,
        measures=MEASURES,
        probes=PROBES,
        noise_floor=NoiseFloorSpec(conditions=("batch_size",), documents=4),
    )
    gate = GateSpec(name="gate", source="gate.yaml", rules=(RuleSpec(rule=rule, where="gate.yaml:1"),))
    steps = (RoundToNearest(bits=bits, granularity="channel"),)
    return Plan(
        name=name,
        source=f"{name}.yaml",
        reference=ModelSpec(model=str(models / "reference")),
        variant=VariantSpec(compress=steps),
        suites=(suite,),
        gates=(gate,),
    )


def compute(plans: Sequence[Plan], folder: Path, of: int) -> list[Path]:
    """All shards, each in a folder of its own."""
    folders = [folder / f"shard-{number}" for number in range(1, of + 1)]
    for number, out in enumerate(folders, 1):
        found = run_share(plans, [out / plan.name for plan in plans], Share(number, of), Silent())
        assert not [each for each in found if isinstance(each, HarnessError)]
    return folders


def merge(plans: Sequence[Plan], shards: Sequence[Path], folder: Path) -> list[Observed]:
    parts = find_parts(shards)
    for name, each in parts.items():
        check_parts(name, each)
    return [merge_parts(plan, parts[plan.name], folder / plan.name).observed for plan in plans]


def content(observed: Observed | HarnessError) -> dict[str, Any]:
    assert isinstance(observed, Observed)
    return {field.name: getattr(observed, field.name) for field in fields(observed) if field.name != "seconds"}


def tables(folder: Path) -> dict[str, bytes]:
    reader = StoreReader(folder / "tables")
    found = {name: reader.read("suite", name) for name in reader.tables("suite")}
    return as_bytes({name: frame for name, frame in found.items() if frame is not None})


@pytest.mark.parametrize(
    ("of", "least", "rule"),
    [(1, None, CLEAR), (7, None, CLEAR), (2, 20, CLEAR), (3, 20, NEVER)],
    ids=["one", "all documents", "first look", "last look"],
)
def test_merged_shards_are_the_run_of_one_process(
    models: Path, tmp_path: Path, of: int, least: int | None, rule: Rule
) -> None:
    plans = [make_plan(models, "four", rule, least=least), make_plan(models, "three", rule, bits=3, least=least)]
    whole = run_group(plans, [tmp_path / "whole" / plan.name for plan in plans], Silent())
    merged = merge(plans, compute(plans, tmp_path, of), tmp_path / "merged")
    for plan, one, other in zip(plans, whole, merged, strict=True):
        assert content(other) == content(one)
        assert tables(tmp_path / "merged" / plan.name) == tables(tmp_path / "whole" / plan.name)


def test_a_shard_that_was_killed_resumes(models: Path, tmp_path: Path) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    class Ending(Silent):
        def step(self, what: str, done: int, of: int) -> None:
            if what == "shared pass" and done > 0:
                raise Killed

    plan = make_plan(models, "four")
    with pytest.raises(Killed):
        run_share([plan], [tmp_path / "shard-1" / "four"], Share(1, 2), Ending())
    with pytest.raises(MergeError, match=r"found no shard\.json there"):
        find_parts([tmp_path / "shard-1"])
    (whole,) = run_group([plan], [tmp_path / "whole"], Silent())
    (merged,) = merge([plan], compute([plan], tmp_path, 2), tmp_path / "merged")
    assert content(merged) == content(whole)


@pytest.fixture(scope="module")
def two(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    compute([make_plan(models, "v", least=None)], folder, 2)
    return folder


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda shard: shard.update(number=1), "are the same part, expected each once"),
        (lambda shard: shard.update(of=3), "are parts of different wholes"),
        (lambda shard: shard.update(harness="0.0.1"), r"differs from shard 1/2 .* in the version of harness \("),
        (lambda shard: shard.update(plan_sha256="0"), "in what their variant files ask for"),
        (lambda shard: shard["facts"]["environment"]["packages"].update(torch="1.0"), r"in torch \(.*, 1\.0\)"),
        (lambda shard: shard["facts"]["environment"].update(threads=99), r"in threads \(\d+, 99\)"),
        (lambda shard: shard.update(rounding="0"), r"in how their processors round \("),
        (lambda shard: shard["facts"]["depends"].update(variant="0"), "in the variant"),
        (lambda shard: shard["facts"].update(hidden_weights="no"), "in what they say of hidden_weights"),
        (lambda shard: shard["units"].pop(), "in the units of work"),
        (lambda shard: shard.pop("units"), "could not be read"),
    ],
)  # fmt: skip
def test_shards_that_are_not_of_one_whole_are_refused(
    two: Path, models: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None], said: str
) -> None:
    shutil.copytree(two, tmp_path / "two")
    change(tmp_path / "two" / "shard-2" / "v" / SHARD_FILE, edit)
    with pytest.raises(MergeError, match=said):
        merge([make_plan(models, "v", least=None)], sorted((tmp_path / "two").iterdir()), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_processors_of_other_kinds_that_round_alike_are_said(two: Path, models: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "two")
    path = tmp_path / "two" / "shard-2" / "v" / SHARD_FILE
    change(path, lambda shard: shard["facts"]["environment"].update(processor="another"))
    (merged,) = merge([make_plan(models, "v", least=None)], sorted((tmp_path / "two").iterdir()), tmp_path / "merged")
    (note,) = [note.text for note in merged.notes if note.topic == "shards"]
    assert note.endswith("1 of 2 on another")


def test_gaps_and_other_plans_are_refused(two: Path, models: Path, tmp_path: Path) -> None:
    plan = make_plan(models, "v", least=None)
    with pytest.raises(MergeError, match=r"v: no folder of shard 2/2, expected all of 1/2 to 2/2"):
        merge([plan], [two / "shard-1"], tmp_path / "merged")
    with pytest.raises(MergeError, match="found another plan than when the shards were computed"):
        merge([make_plan(models, "v", CLEAR, least=None)], sorted(two.iterdir()), tmp_path / "merged")


def test_a_lost_unit_is_an_error_and_never_fewer_rows(two: Path, models: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "two")
    journal = tmp_path / "two" / "shard-2" / "v" / "tables" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"unit":"pass/' not in line or '"unit":"pass/setup"' in line]
    assert len(kept) < len(lines)
    journal.write_text("".join(kept))
    with pytest.raises(MergeError, match=r"shard 2/2 .*: the unit pass/\d+ of suite suite is missing"):
        merge([make_plan(models, "v", least=None)], sorted((tmp_path / "two").iterdir()), tmp_path / "merged")


def test_other_conditions_of_a_pass_are_refused(two: Path, models: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "two")
    folder = tmp_path / "two" / "shard-2" / "v" / "tables"
    change_kernel(folder)
    with pytest.raises(MergeError, match=r"ran the pass of suite suite under other conditions \(the tables pass of"):
        merge([make_plan(models, "v", least=None)], sorted((tmp_path / "two").iterdir()), tmp_path / "merged")


def change_kernel(folder: Path) -> None:
    """Commit the report of the pass again, with another kernel."""
    from harness.tables.store import Store

    reader = StoreReader(folder)
    frames = {}
    for name in ("documents", "notes", "pass", "unpaired"):
        frame = reader.read("suite", name)
        assert frame is not None
        frames[name] = frame.assign(kernel="other") if name == "pass" else frame
    units = [(unit, reader) for unit in reader.units("suite") if unit != "pass/setup"]
    with Store(folder.with_name("new"), reader.data_key) as store:
        for unit, source in units:
            store.adopt(source, "suite", unit)
        store.sink("suite").commit("pass/setup", frames)
    shutil.rmtree(folder)
    shutil.move(folder.with_name("new"), folder)


@given(count=st.integers(0, 60), of=st.integers(1, 12))
def test_shares_divide_all_units_evenly(count: int, of: int) -> None:
    units = [Unit(suite="s", name=f"pass/{number}", kind="shared_pass") for number in range(count)]
    shares = [Share(number, of).select(units) for number in range(1, of + 1)]
    assert sorted((unit for share in shares for unit in share), key=units.index) == units
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
