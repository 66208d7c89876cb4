"""Whoever computes a unit, in whatever order results come and workers go: every unit is committed once, with the same
result; what cannot be computed is named; and the head's work for a unit does not grow with their number."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import pytest

from harness.cluster.dispatch import AHEAD, MOST_ATTEMPTS, Dispatcher, describe_failure
from harness.cluster.workers import Failed, Finished, Lost, Unit
from harness.errors import ClusterError
from tests.helpers.simulated_workers import Silent, SimulatedWorkers


@dataclass
class Stages:
    """Units stage by stage: those of a stage are known once all of the stage before are committed."""

    stages: list[list[Unit]]
    committed: dict[tuple[str, str, tuple[str, ...]], object] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    """Variants that need nothing more."""
    splits: bool = False
    left: int = 0
    stage: int = -1

    def next_units(self, closed: Unit | None) -> Iterable[Unit]:
        self.left -= closed is not None
        if self.left > 0 or self.stage + 1 == len(self.stages):
            return ()
        self.stage += 1
        self.left = len(self.stages[self.stage])
        return self.stages[self.stage]

    def trim(self, unit: Unit) -> Unit | None:
        if not self.finished:
            return unit
        left = tuple(name for name in unit.variants if name not in self.finished)
        return replace(unit, variants=left) if left else None

    def find_fault(self, unit: Unit, result: object) -> str:
        return "made of other models" if result == "odd" else ""

    def commit(self, unit: Unit, result: object) -> None:
        key = (unit.suite, unit.name, unit.variants)
        assert key not in self.committed
        self.committed[key] = result
        self.order.append(unit.name)

    def give_up(self, failed: Failed) -> Iterable[Unit]:
        if self.splits and len(failed.unit.variants) > 1:
            self.left += len(failed.unit.variants)
            return [replace(failed.unit, variants=(name,)) for name in failed.unit.variants]
        raise ClusterError(describe_failure(failed))


def units(count: int, **more: Any) -> list[Unit]:
    return [Unit("core", f"pass/{number}", ("a", "b"), **more) for number in range(count)]


def run(job: Stages, workers: SimulatedWorkers, **more: Any) -> Silent:
    monitor = Silent()
    Dispatcher(job, workers, monitor, clock=workers.clock, **more).go()
    return monitor


def plain(count: int) -> dict[str, str]:
    return {f"w{number}": "" for number in range(count)}


def test_results_do_not_depend_on_the_number_of_workers_or_the_order_of_arrival() -> None:
    found = []
    for count, seed in ((1, 0), (2, 1), (7, 2), (7, 3)):
        draw = random.Random(seed)
        job = Stages([units(20), [replace(unit, suite="more") for unit in units(9)]])
        workers = SimulatedWorkers(plain(count), seconds=lambda worker, unit, draw=draw: draw.uniform(1, 9))  # type: ignore[misc]
        run(job, workers)
        found.append(job)
        assert workers.stopped
        assert len(workers.handed) == 29
    assert all(each.committed == found[0].committed for each in found)
    assert found[0].order != found[3].order
    assert len(found[0].committed) == 29


def test_a_later_stage_is_handed_out_only_when_the_stage_before_is_committed() -> None:
    first, second = units(5), [replace(unit, name=f"late/{unit.name}") for unit in units(5)]
    workers = SimulatedWorkers(plain(3), seconds=lambda worker, unit: 1.0 + hash(unit.name) % 3)
    job = Stages([first, second])
    run(job, workers)
    assert {unit for _, unit in workers.handed[:5]} == set(first)
    assert set(job.order[:5]) == {unit.name for unit in first}


def test_a_lost_worker_costs_only_the_unit_that_it_ran() -> None:
    whole = SimulatedWorkers(plain(2), seconds=lambda worker, unit: 10.0)
    run(Stages([units(20)]), whole)
    for when in (3.0, 10.0, 14.5, 57.0):
        job = Stages([units(20)])
        workers = SimulatedWorkers(plain(2), seconds=lambda worker, unit: 10.0, dies={"w1": (when, False)})
        monitor = run(job, workers)
        assert len(job.committed) == 20
        assert workers.wasted <= 10.0
        assert any("w1 was lost" in text for text in monitor.notes)
        twice = [unit for _, unit in workers.handed]
        assert 20 <= len(twice) <= 20 + AHEAD


def test_a_unit_that_fails_on_one_worker_is_computed_by_another() -> None:
    def compute(worker: str, unit: Unit) -> object:
        if worker == "w1" and unit.name == "pass/3":
            raise ArithmeticError("a broken disk")
        return unit.name

    job = Stages([units(12)])
    workers = SimulatedWorkers(plain(2), compute)
    monitor = run(job, workers)
    tried = [worker for worker, unit in workers.handed if unit.name == "pass/3"]
    assert tried == ["w1", "w0"]
    assert len(job.committed) == 12
    assert any("pass/3" in text and "a broken disk" in text for text in monitor.notes)


def test_a_unit_that_fails_everywhere_is_named_with_worker_and_log() -> None:
    def compute(worker: str, unit: Unit) -> object:
        if unit.name == "pass/3":
            raise ArithmeticError("no such task")
        return unit.name

    job, workers = Stages([units(12)]), SimulatedWorkers(plain(2), compute)
    with pytest.raises(ClusterError) as caught:
        run(job, workers)
    text = str(caught.value)
    assert "core pass/3: a, b" in text
    assert f"{MOST_ATTEMPTS} attempts" in text
    assert "no such task" in text
    assert "log of w" in text
    assert sum(unit.name == "pass/3" for _, unit in workers.handed) == MOST_ATTEMPTS
    assert workers.stopped


def test_a_job_may_split_a_unit_that_fails_for_one_of_its_variants() -> None:
    def compute(worker: str, unit: Unit) -> object:
        if "b" in unit.variants and unit.name == "pass/1" and len(unit.variants) > 1:
            raise ArithmeticError("b does not fit beside a")
        return unit.variants

    job = Stages([units(3)], splits=True)
    run(job, SimulatedWorkers(plain(2), compute))
    assert sorted(job.committed) == [
        ("core", "pass/0", ("a", "b")),
        ("core", "pass/1", ("a",)),
        ("core", "pass/1", ("b",)),
        ("core", "pass/2", ("a", "b")),
    ]


def test_a_unit_that_kills_its_workers_is_given_up_but_a_node_that_goes_is_not_its_fault() -> None:
    names = [f"w{number}" for number in range(6)]
    joins = {name: 10.0 * number for number, name in enumerate(names)}
    long = [Unit("core", "train", ("a",), cost=1000.0)]
    kills = {name: (joins[name] + 5, False) for name in names[:5]}
    with pytest.raises(ClusterError, match="its worker was lost: killed"):
        run(Stages([long]), SimulatedWorkers(dict.fromkeys(names, ""), joins=joins, dies=kills))
    nodes = {name: (when, True) for name, (when, _) in kills.items()}
    job = Stages([long])
    run(job, SimulatedWorkers(dict.fromkeys(names, ""), joins=joins, dies=nodes))
    assert len(job.committed) == 1


def test_a_worker_that_only_fails_gets_nothing_more() -> None:
    def compute(worker: str, unit: Unit) -> object:
        if worker == "w1":
            raise ArithmeticError("no space left on device")
        return unit.name

    job = Stages([units(40)])
    workers = SimulatedWorkers(plain(3), compute)
    monitor = run(job, workers)
    assert len(job.committed) == 40
    assert sum(worker == "w1" for worker, _ in workers.handed) <= MOST_ATTEMPTS + AHEAD
    assert any("w1 gets no more units" in text for text in monitor.notes)


def test_a_worker_with_other_libraries_or_other_rounding_is_refused_by_name() -> None:
    same: Mapping[str, str] = {"torch": "2.8", "rounding": "c0ffee"}
    prints = {"w0": same, "w1": {**same, "torch": "2.7"}, "w2": {**same, "rounding": "decade"}, "w3": same}
    job = Stages([units(12)])
    workers = SimulatedWorkers(plain(4), fingerprints=prints)
    monitor = run(job, workers, expected=same)
    assert {worker for worker, _ in workers.handed} == {"w0", "w3"}
    (first,) = (text for text in monitor.notes if "w1" in text)
    assert "torch: found 2.7, expected 2.8" in first
    (second,) = (text for text in monitor.notes if "w2" in text)
    assert "rounding: found decade, expected c0ffee" in second


def test_a_worker_of_another_kind_that_rounds_alike_is_taken_and_said() -> None:
    prints = {f"w{number}": {"rounding": "c0ffee", "processor": f"kind {number}"} for number in range(2)}
    workers = SimulatedWorkers(plain(2), fingerprints=prints)
    monitor = run(Stages([units(12)]), workers)
    assert {worker for worker, _ in workers.handed} == {"w0", "w1"}
    (said,) = monitor.notes
    assert "worker w1 is of another kind" in said
    assert "found kind 1, expected kind 0" in said


def test_no_worker_ends_in_an_error_that_says_why_and_not_in_waiting() -> None:
    workers = SimulatedWorkers({})
    with pytest.raises(ClusterError, match="no worker took any of the 4 units left for 60 s: asked for 2"):
        run(Stages([units(4)]), workers, patience=60.0)
    assert 60 <= workers.now < 70
    refused = SimulatedWorkers(plain(1), fingerprints={"w0": {"torch": "1"}})
    with pytest.raises(ClusterError, match=r"refused: w0 \(torch: found 1, expected 2\)"):
        run(Stages([units(4)]), refused, patience=60.0, expected={"torch": "2"})
    dead = SimulatedWorkers(plain(1), dies={"w0": (2.5, False)})
    with pytest.raises(ClusterError, match="w0 was lost: killed"):
        run(Stages([units(9)]), dead, patience=60.0)


def test_a_worker_that_takes_long_to_open_its_models_is_waited_for() -> None:
    job = Stages([units(4)])
    run(job, SimulatedWorkers(plain(1), joins={"w0": 1000.0}), patience=60.0)
    assert len(job.committed) == 4


def test_units_with_a_label_go_to_its_workers_and_nothing_else_does() -> None:
    timed = [Unit("core", "timings", ("a",), needs="quiet")]
    job = Stages([[*units(10), *timed]])
    workers = SimulatedWorkers({"w0": "", "w1": "quiet"})
    run(job, workers)
    assert [unit.name for worker, unit in workers.handed if worker == "w1"] == ["timings"]
    with pytest.raises(ClusterError, match="1 units left"):
        run(Stages([[*units(3), *timed]]), SimulatedWorkers({"w0": ""}), patience=9.0)


def test_workers_keep_the_models_that_they_have_open_and_large_units_go_first() -> None:
    mixed = [
        Unit("core", f"pass/{number}", (f"v{group}",), holds=f"models {group}", cost=1.0 + 7 * (number == 9))
        for number in range(10)
        for group in range(4)
    ]
    workers = SimulatedWorkers(plain(2))
    run(Stages([mixed]), workers)
    for name in workers.labels:
        held = [unit.holds for worker, unit in workers.handed if worker == name]
        switches = sum(now != then for now, then in zip(held[1:], held, strict=False))
        assert switches <= 3
    assert workers.handed[0][1].name == "pass/9"


def test_variants_that_need_nothing_more_stop_costing() -> None:
    job = Stages([units(4), [replace(unit, name=f"late/{unit.name}") for unit in units(4)]])
    committing = job.commit

    def commit(unit: Unit, result: object) -> None:
        committing(unit, result)
        if len(job.committed) == 4:
            job.finished.add("b")

    job.commit = commit  # type: ignore[method-assign]
    run(job, SimulatedWorkers(plain(2)))
    assert {key[2] for key in job.committed if key[1].startswith("late")} == {("a",)}
    done = Stages([units(4)], finished={"a", "b"})
    workers = SimulatedWorkers(plain(2))
    run(done, workers)
    assert workers.handed == []


def test_units_that_nobody_needs_release_what_waits_for_them() -> None:
    late = [replace(unit, name=f"late/{unit.name}", variants=("c",)) for unit in units(2)]
    job = Stages([units(3), late], finished={"a", "b"})
    run(job, SimulatedWorkers(plain(2)))
    assert sorted(key[1] for key in job.committed) == ["late/pass/0", "late/pass/1"]


def test_a_result_with_a_fault_is_not_stored_and_its_worker_is_let_go() -> None:
    job = Stages([units(20)])
    workers = SimulatedWorkers(plain(3), lambda worker, unit: "odd" if worker == "w1" else unit.name)
    monitor = run(job, workers)
    assert len(job.committed) == 20
    assert "odd" not in job.committed.values()
    assert any("made of other models" in text for text in monitor.notes)
    assert any("w1 gets no more units" in text for text in monitor.notes)


def test_a_worker_whose_models_have_changed_ends_the_job() -> None:
    workers = SimulatedWorkers(plain(2))
    workers.failing_at_the_end = [Failed("w1", Unit("", "verify", ()), "weights changed")]
    with pytest.raises(ClusterError, match="w1 ended with weights changed"):
        run(Stages([units(3)]), workers)


def test_a_worker_that_is_lost_before_it_can_say_so_is_told_and_costs_nothing() -> None:
    job, workers = Stages([units(3)]), SimulatedWorkers(plain(2))
    workers.failing_at_the_end = [Lost("w1", "its process was killed")]
    (said,) = run(job, workers).notes
    assert "w1 was lost before it could say" in said
    assert said.endswith("its process was killed")


def test_the_same_unit_listed_twice_is_an_error() -> None:
    with pytest.raises(ClusterError, match="pass/1: a, b is listed twice"):
        run(Stages([[*units(2), units(2)[1]]]), SimulatedWorkers(plain(1)))


def test_a_result_of_a_worker_that_was_given_up_is_not_committed_twice() -> None:
    job = Stages([units(3)])
    workers = SimulatedWorkers(plain(2), dies={"w1": (0.5, True)})
    dispatcher = Dispatcher(job, workers, Silent(), clock=workers.clock)
    dispatcher.go()
    dispatcher._handle(Finished("w1", units(3)[1], "late"))
    assert len(job.committed) == 3


def count_steps(count: int, workers: int) -> int:
    """Lines of Python that run while so many units are dispatched, the simulation's own apart."""
    job = Stages([units(count)])
    crew = SimulatedWorkers({f"w{number}": "" for number in range(workers)}, seconds=lambda worker, unit: 1.0)
    dispatcher = Dispatcher(job, crew, Silent(), clock=crew.clock)
    steps = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        if "simulated_workers" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
            return None
        steps += 1
        return trace

    sys.settrace(trace)
    try:
        dispatcher.go()
    finally:
        sys.settrace(None)
    assert len(job.committed) == count
    return steps


@pytest.mark.parametrize("workers", [1, 16])
def test_the_heads_work_for_a_unit_does_not_grow_with_the_number_of_units(workers: int) -> None:
    few, many = count_steps(200, workers), count_steps(2000, workers)
    assert many <= 11 * few
    assert few > 200
