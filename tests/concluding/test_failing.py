"""Variants that documents have decided: what is left out for them, and that nothing can make a pass of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.check import check
from harness.errors import HarnessError
from harness.judge import rejudge
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Run
from harness.rules.at_most import AtMost
from harness.sharing.compute import compute_shard
from harness.tables.store import StoreReader
from harness.terminal import Terminal
from harness.write import read_run
from tests.helpers.cluster_checks import read_same
from tests.helpers.spread_checks import Spread

SUITE = """\
documents: {data: pocket-heldout, max: 24, context: 64, bos: auto}
measures: [divergence, weight_error, artifact,
  {measure: tasks, bos: auto, items: {min: 20, max: 60}, tasks: [pocket_facts]},
  {measure: generation, bos: auto, max: 4, prompt_tokens: 8, new_tokens: 4, batch_size: 2}]
"""
SECOND = """\
documents: {data: pocket-heldout, max: 24, context: 32, bos: auto}
measures: [perplexity, {measure: tasks, bos: auto, tasks: [pocket_sums], limit: 4}]
"""
GATE = """\
rules:
  - {rule: at_most, metric: divergence.kl_mean, limit: 0.003, why: between 3 and 8 bits}
  - {rule: not_worse, metric: tasks.pocket_facts.accuracy, margin: 0.9, why: any number}
  - {rule: not_worse, metric: generation.stopped, margin: 0.9, level: warn, why: any number}
  - {rule: at_most, metric: artifact.kl_max, limit: 9.0, why: any number}
"""


def write_check(
    folder: Path, suites: tuple[str, ...] = (SUITE,), matrix: str = "matrix: {bits: [3, 8]}\n", more: str = ""
) -> Path:
    folder.mkdir(exist_ok=True)
    for number, suite in enumerate(suites):
        (folder / f"s{number}.yaml").write_text(suite)
    (folder / "g.yaml").write_text(GATE)
    path = folder / "v.yaml"
    path.write_text(
        "name: v\nreference: {model: pocket}\n"
        f"variant: {{compress: [{{backend: round_to_nearest, bits: {'$bits' if matrix else 3}}}]}}\n"
        f"suites: [{', '.join(f'./s{number}.yaml' for number in range(len(suites)))}]\n"
        f"gates: [./g.yaml]\nstop_at_failure: true\n{matrix}{more}"
    )
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    assert check([write_check(folder)], folder / "out", Terminal()) == 1
    return folder / "out"


def statuses(run: Run) -> dict[str, str]:
    return {verdict.metric: verdict.status for verdict in run.verdicts}


def test_a_variant_whose_documents_failed_costs_nothing_more(done: Path) -> None:
    run = read_run(done / "v-bits3")
    units = StoreReader(done / "v-bits3" / "tables").units("s0")
    assert [unit for unit in units if unit.partition("/")[0].partition(":")[0] not in ("pass", "comparability")] == []
    assert not (done / "v-bits3" / "artifact").exists()
    assert (run.verdict, run.exit_code) == ("fail", 1)
    found = statuses(run)
    assert found["divergence.kl_mean"] == "fail"
    assert found["tasks.pocket_facts.accuracy"] == found["artifact.kl_max"] == "inconclusive"
    assert "error" not in found.values()
    (because,) = {each.reason for each in run.skipped if each.cut_short}
    assert because == "not measured, because at_most divergence.kl_mean had failed (stop_at_failure)"
    (note,) = (note.text for note in run.notes if note.topic == "stop_at_failure")
    assert because in note


def test_the_others_are_measured_as_ever(done: Path) -> None:
    run = read_run(done / "v-bits8")
    assert run.verdict == "pass"
    assert not any(each.cut_short for each in run.skipped)
    assert (done / "v-bits8" / "artifact").is_dir()


def test_no_gate_makes_a_pass_of_what_was_not_measured(done: Path) -> None:
    loose = AtMost(metric="divergence.kl_mean", limit=9.0, why="anything")
    artifact = AtMost(metric="artifact.kl_max", limit=9.0, on_inconclusive="warn", why="anything")
    rules = tuple(RuleSpec(rule=rule, where="g.yaml:1") for rule in (loose, artifact))
    again = rejudge(read_run(done / "v-bits3"), [GateSpec(name="g", source="g.yaml", rules=rules)])
    assert statuses(again)["divergence.kl_mean"] == "pass"
    assert (again.verdict, again.exit_code) == ("inconclusive", 3)


def test_documents_of_any_suite_decide_for_all(tmp_path: Path) -> None:
    path = write_check(tmp_path, suites=(SECOND, SUITE))
    assert check([path], tmp_path / "out", Terminal()) == 1
    for bits, items in ((3, ()), (8, ("items:pocket_sums",))):
        units = StoreReader(tmp_path / "out" / f"v-bits{bits}" / "tables").units("s0")
        assert tuple(unit for unit in units if unit.startswith("items")) == items
    assert read_run(tmp_path / "out" / "v-bits3").verdict == "fail"


@pytest.mark.parametrize("spread", [False, True])
def test_an_artifact_of_before_is_removed(tmp_path: Path, spread: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_check(tmp_path, matrix="", more="run: {ray: auto, wait: 5}\n" * spread)
    if spread:
        Spread(monkeypatch)
    stopping = path.read_text()
    path.write_text(stopping.replace("stop_at_failure: true", ""))
    check([path], tmp_path / "out", Terminal())
    assert (tmp_path / "out" / "v" / "artifact").is_dir()
    path.write_text(stopping)
    check([path], tmp_path / "out", Terminal())
    assert not (tmp_path / "out" / "v" / "artifact").exists()
    assert read_run(tmp_path / "out" / "v").artifact is None


def test_workers_leave_out_the_same(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spread = Spread(monkeypatch)
    path = write_check(tmp_path, more="run: {ray: auto, wait: 5}\n")
    assert check([path], tmp_path / "out", Terminal()) == 1
    for name in ("v-bits3", "v-bits8"):
        here, there = read_same(done / name), read_same(tmp_path / "out" / name)
        assert here | {"asked": 0} == there | {"asked": 0}
    computed = [unit for _, unit in spread.workers[0].computed if "v-bits3" in unit.variants]
    assert {unit.kind for unit in computed} == {"shared_pass", "describe", "files", "conclude"}


def test_shards_cannot_know_and_say_so(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="stop_at_failure: found true, expected false for a shard"):
        compute_shard([write_check(tmp_path)], tmp_path / "out", 1, 2, Terminal())
