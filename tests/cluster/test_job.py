"""What a check comes to when its units are computed here and there: the same record, whoever computed what, in whatever
order, and whatever went wrong on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.check import check
from harness.cluster.job import CheckJob
from harness.cluster.messages import Computed
from harness.cluster.workers import Failed, Unit
from harness.concluding.extending import Extending
from harness.errors import ClusterError, MeasureError, ModelError
from harness.running.variant import make_variant
from harness.terminal import Terminal
from tests.helpers.cluster_checks import DRAWN, ITEMS, SMALL, read_same, write_check
from tests.helpers.spread_checks import DECIDED_AT, MATRIX, Spread, check_here

SLOW = pytest.mark.slow


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Spread:
    monkeypatch.chdir(tmp_path)
    return Spread(monkeypatch)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read_same(check_here(tmp_path_factory.mktemp("small"), SMALL, 0.05)[1] / "v")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read_same(check_here(tmp_path_factory.mktemp("drawn"), DRAWN, DECIDED_AT)[1] / "v")


@pytest.mark.parametrize(("count", "seed"), [pytest.param(1, 0, marks=SLOW), (2, 1), pytest.param(7, 2, marks=SLOW)])
def test_the_record_is_the_same_for_any_number_of_workers(
    spread: Spread, tmp_path: Path, small: dict[str, Any], count: int, seed: int
) -> None:
    out = spread.check(tmp_path, SMALL, 0.05, count=count, seed=seed)
    assert read_same(out / "v") == small
    assert spread.code == 0
    assert len({worker for worker, _ in spread.workers[0].computed}) == min(count, 7)


@pytest.mark.parametrize(("count", "seed"), [pytest.param(1, 0, marks=SLOW), (2, 1), pytest.param(7, 2, marks=SLOW)])
def test_a_suite_that_samples_until_decided_stops_at_the_same_look(
    spread: Spread, tmp_path: Path, drawn: dict[str, Any], count: int, seed: int
) -> None:
    out = spread.check(tmp_path, DRAWN, DECIDED_AT, count=count, seed=seed)
    assert read_same(out / "v") == drawn
    (stop,) = drawn["stops"]
    assert 20 < stop["documents"] < 160
    passed = [unit for _, unit in spread.workers[0].computed if unit.kind == "shared_pass"]
    assert len(passed) == len(set(passed))


def test_items_of_a_task_are_drawn_to_the_same_look_and_no_further(spread: Spread, tmp_path: Path) -> None:
    code, plain = check_here(tmp_path, ITEMS, 9.0)
    out = spread.check(tmp_path, ITEMS, 9.0)
    assert spread.code == code
    assert read_same(out / "v") == read_same(plain / "v")
    scored = {unit.name for _, unit in spread.workers[0].computed if unit.kind == "items"}
    sums = {name for name in scored if name.startswith("items:pocket_sums/")}
    assert scored - sums == {"items:pocket_facts/0"}, "a decided task takes no further stage"
    assert len(sums) > 1


def test_no_further_items_are_handed_out_for_a_variant_whose_documents_failed(spread: Spread, tmp_path: Path) -> None:
    """Although units of items were handed out, and stored, before those of documents."""
    suite = ITEMS.replace("max: 4", "max: 24")
    code, plain = check_here(tmp_path, suite, 1e-9)
    out = spread.check(tmp_path, suite, 1e-9)
    assert spread.code == code == 1
    assert read_same(out / "v") == read_same(plain / "v")
    assert {unit.name for _, unit in spread.workers[0].computed if unit.kind == "items"} == {
        "items:pocket_facts/0",
        "items:pocket_sums/0",
    }


@pytest.mark.parametrize("when", [5, *(pytest.param(when, marks=SLOW) for when in (1, 2, 3, 8, 11))])
def test_a_worker_that_dies_at_any_point_changes_no_bit(
    spread: Spread, tmp_path: Path, drawn: dict[str, Any], when: int
) -> None:
    out = spread.check(tmp_path, DRAWN, DECIDED_AT, count=3, seed=when, deaths={"w1": when})
    assert read_same(out / "v") == drawn
    assert spread.workers[0].lost == ["w1"]


@pytest.mark.parametrize("when", [4, *(pytest.param(when, marks=SLOW) for when in (1, 2, 7))])
def test_a_head_that_ends_at_any_point_goes_on_from_what_it_had_stored(
    spread: Spread, tmp_path: Path, drawn: dict[str, Any], when: int
) -> None:
    with pytest.raises(ClusterError):
        check_until_all_are_dead(spread, tmp_path, when)
    first = [unit.name for _, unit in spread.workers[0].computed if unit.kind == "shared_pass"]
    out = spread.check(tmp_path, DRAWN, DECIDED_AT, seed=5)
    assert read_same(out / "v") == drawn
    second = [unit.name for _, unit in spread.workers[1].computed if unit.kind == "shared_pass"]
    assert not set(first) & set(second), "what was stored is not computed again"


def check_until_all_are_dead(spread: Spread, folder: Path, when: int) -> None:
    out = spread.check(folder, DRAWN, DECIDED_AT, deaths={"w0": when, "w1": when})
    failure = json.loads((out / "v" / "failure.json").read_text())
    raise ClusterError(failure["message"])


def test_variants_of_a_sweep_share_the_pass_and_stop_when_they_are_decided(spread: Spread, tmp_path: Path) -> None:
    code, plain = check_here(tmp_path, DRAWN, DECIDED_AT, MATRIX)
    out = spread.check(tmp_path, DRAWN, DECIDED_AT, matrix=MATRIX)
    assert spread.code == code == 1, "the variant of three bits fails"
    for name in ("v-bits3", "v-bits4", "v-bits8"):
        assert read_same(out / name) == read_same(plain / name)
    units = [unit for _, unit in spread.workers[0].computed if unit.kind == "shared_pass"]
    assert len({unit.name for unit in units}) == len(units), "one pass of the reference serves all variants"
    assert units[0].variants == ("v-bits3", "v-bits4", "v-bits8")
    assert set(units[-1].variants) < {"v-bits3", "v-bits4", "v-bits8"}
    assert (out / "overview.html").is_file()


def test_a_variant_that_takes_documents_to_make_is_made_once_and_handed_on(
    spread: Spread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(plan: Any, *more: Any) -> Any:
        calls.append(plan.name)
        return make_variant(plan, *more)

    monkeypatch.setattr("harness.running.pairs.make_variant", counted)
    path = write_check(tmp_path, SMALL, 9.0)
    step = "{backend: gptq, bits: 4}]}\ncalibration: {data: pocket-calibration, documents: 4, tokens: 32}"
    for name, where in (("plain", ""), ("spread", "run: {ray: auto, wait: 5}\n")):
        text = path.read_text().replace("{backend: round_to_nearest, bits: 4}]}", step)
        (tmp_path / f"{name}.yaml").write_text(text + where)
        spread.settings = {"count": 3, "seed": 1}
        assert check([tmp_path / f"{name}.yaml"], tmp_path / name, Terminal()) == 0
    assert len({worker for worker, _ in spread.workers[0].computed}) == 3
    assert calls == ["v", "v"], "once in one process, once for all workers"
    assert read_same(tmp_path / "spread" / "v") == read_same(tmp_path / "plain" / "v")
    assert not (tmp_path / "spread" / "v" / "made.pt").exists()


def test_a_variant_from_another_file_than_the_one_that_was_handed_on_is_refused() -> None:
    job = CheckJob({}, {})
    job._inputs["v"], job._made["v"] = {}, "a"
    unit = Unit("s", "pass/0", ("v",))
    assert job.find_fault(unit, Computed({}, {"v": {}}, {}, {}, {}, {"v": "a"})) == ""
    assert "not the one in which it was handed on" in job.find_fault(
        unit, Computed({}, {"v": {}}, {}, {}, {}, {"v": "b"})
    )


def test_a_result_of_other_inputs_or_another_kernel_is_refused() -> None:
    job = CheckJob({}, {})
    job._inputs["v"], job._reports["v", "s"] = {"reference": "1"}, "a"
    unit = Unit("s", "pass/0", ("v",))
    good = Computed({}, {"v": {"reference": "1"}}, {("v", "s"): "a"}, {}, {})
    other = Computed({}, {"v": {"reference": "2"}}, {}, {}, {})
    kernel = Computed({}, {"v": {"reference": "1"}}, {("v", "s"): "b"}, {}, {})
    assert job.find_fault(unit, good) == ""
    assert "v was computed from other inputs (reference: found 2, expected 1)" in job.find_fault(unit, other)
    assert "the pass of suite s ran under other conditions" in job.find_fault(unit, kernel)


def job_of(*names: str) -> CheckJob:
    plans: Any = [SimpleNamespace(name=name) for name in names]
    job = CheckJob({"1": plans}, {})
    list(job.next_units(None))
    return job


def test_what_fails_for_several_variants_is_tried_for_each_and_one_that_fails_alone_keeps_its_error() -> None:
    job = job_of("a", "b")
    unit = Unit("s", "pass/0", ("a", "b"), "shared_pass", holds="1")
    failed = Failed("w", unit, "ModelError: memory ran out", "", "ModelError")
    alone = list(job.give_up(failed))
    assert [each.variants for each in alone] == [("a",), ("b",)]
    assert list(job.give_up(replace(failed, unit=alone[1]))) == []
    assert job.trim(unit) == replace(unit, variants=("a",), report=True)
    assert job.trim(alone[1]) is None
    error = job._errors["b"]
    assert isinstance(error, ModelError)
    assert str(error) == "memory ran out"
    assert error.failure == "model_unsupported"


@SLOW
def test_a_variant_that_cannot_be_judged_at_a_look_leaves_the_others_alone(
    spread: Spread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = Extending.goes_on

    def fail(looks: Extending, variant: int, look: int) -> bool:
        if looks._watches[variant].pair.observed.plan.name == "v-bits4":
            raise MeasureError("a divergence below zero")
        return goes_on(looks, variant, look)

    monkeypatch.setattr(Extending, "goes_on", fail)
    out = spread.check(tmp_path, DRAWN, DECIDED_AT, matrix=MATRIX)
    assert spread.code == 2
    assert "a divergence below zero" in json.loads((out / "v-bits4" / "failure.json").read_text())["message"]
    assert (out / "v-bits8" / "run.json").is_file()


def test_what_no_user_can_act_on_and_what_is_wrong_with_the_reference_end_the_check() -> None:
    job = job_of("a", "b")
    unit = Unit("", "describe", ("a", "b"), "describe", holds="1")
    with pytest.raises(ModelError, match=r"^no config\.json$"):
        job.give_up(Failed("w", unit, "ModelError: no config.json", "", "ModelError"))
    with pytest.raises(ClusterError, match="KeyError: 'x'"):
        job.give_up(Failed("w", replace(unit, kind="items"), "KeyError: 'x'", "", "KeyError"))


def test_a_unit_whose_rows_are_missing_is_an_error_and_not_fewer_rows(
    spread: Spread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = CheckJob.commit

    def lose(job: CheckJob, unit: Unit, result: object) -> None:
        if unit.name != "pass/0":
            commit(job, unit, result)

    monkeypatch.setattr(CheckJob, "commit", lose)
    out = spread.check(tmp_path, DRAWN, DECIDED_AT)
    assert spread.code == 2
    assert not (out / "v" / "run.json").exists()
    assert "pass/0, which were to be computed" in capsys.readouterr().out
