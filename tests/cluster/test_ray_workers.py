"""Actors of a real, local Ray cluster: results are the same whoever computed them, whatever died on the way."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.cluster.dispatch import Dispatcher, describe_failure
from harness.cluster.ray_workers import Asked, RayWorkers
from harness.cluster.workers import Failed, Unit
from harness.errors import ClusterError
from harness.records import RunSpec
from tests.helpers.fake_sessions import SLOW, FakeOpener, expected_result
from tests.helpers.local_cluster import LocalCluster, list_actors, local_cluster
from tests.helpers.simulated_workers import Silent

pytest.importorskip("ray", reason="needs the extra ray")

MEMORY = 50e6


@dataclass
class Listed:
    units: list[Unit]
    results: dict[Unit, object] = field(default_factory=dict)

    def next_units(self, closed: Unit | None) -> Iterable[Unit]:
        return self.units if closed is None else ()

    def trim(self, unit: Unit) -> Unit | None:
        return unit

    def find_fault(self, unit: Unit, result: object) -> str:
        return ""

    def commit(self, unit: Unit, result: object) -> None:
        assert unit not in self.results
        self.results[unit] = result

    def give_up(self, failed: Failed) -> Iterable[Unit]:
        raise ClusterError(describe_failure(failed))


class Watching(Silent):
    """Acts on what the workers do."""

    def __init__(self, act: Any = None) -> None:
        super().__init__()
        self.names: list[str] = []
        self._act = act

    def joined(self, worker: str) -> None:
        self.names.append(worker)

    def done(self, worker: str, unit: Unit, closed: int, known: int) -> None:
        super().done(worker, unit, closed, known)
        if self._act:
            self._act(closed)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(2) as made:
        yield made


def units(count: int, name: str = "pass/", **more: Any) -> list[Unit]:
    return [Unit("core", f"{name}{number}", ("a", "b"), **more) for number in range(count)]


def spec(cluster: LocalCluster, **more: Any) -> RunSpec:
    return RunSpec(ray=cluster.address, **{"wait": 20.0, **more})


def run(cluster: LocalCluster, listed: Listed, monitor: Silent | None = None, **more: Any) -> Silent:
    asked = spec(cluster, **more)
    workers = RayWorkers(asked, FakeOpener(), MEMORY)
    monitor = monitor or Silent()
    Dispatcher(listed, workers, monitor, patience=asked.wait).go()
    return monitor


def check_results(listed: Listed) -> None:
    assert listed.results == {unit: expected_result(unit) for unit in listed.units}


@pytest.mark.slow  # whether the second worker starts before the first has done all depends on the machine
def test_every_unit_is_computed_once_on_as_many_workers_as_there_is_room_for(cluster: LocalCluster) -> None:
    listed = Listed([*units(24), *units(2, "large/", cost=0.1)])
    monitor = Watching()
    run(cluster, listed, monitor)
    check_results(listed)
    assert len(monitor.names) == 2
    assert monitor.closed[-1] == (26, 26)


def test_a_worker_has_one_thread_unless_more_cores_are_asked_for_and_is_a_process_of_its_own(
    cluster: LocalCluster,
) -> None:
    listed = Listed(units(2, "who:"))
    run(cluster, listed, workers=1)
    (first, second) = listed.results.values()
    assert first == second
    assert isinstance(first, tuple)
    assert first[1] == "1"
    assert first[0] != os.getpid()


def test_a_worker_that_is_killed_is_replaced_and_costs_only_its_unit(cluster: LocalCluster, tmp_path: Any) -> None:
    listed = Listed([*units(6, cost=0.1), Unit("core", f"once:{tmp_path / 'died'}", ("a",), cost=0.1)])
    monitor = Watching()
    run(cluster, listed, monitor)
    check_results(listed)
    assert any("was lost" in text for text in monitor.notes)
    assert sum("is tried again" in text for text in monitor.notes) == 1


def test_a_unit_that_kills_every_worker_is_named_with_worker_and_log(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterError) as caught:
        run(cluster, Listed([*units(3, cost=0.1), Unit("core", "die:always", ("a",))]))
    assert "core die:always: a could not be computed on any worker, 3 attempts" in str(caught.value)


def test_a_unit_that_fails_is_named_with_its_worker_and_the_trace(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterError) as caught:
        run(cluster, Listed([*units(3, cost=0.1), Unit("core", "fail:pass/9", ("a",))]))
    text = str(caught.value)
    assert "core fail:pass/9: a" in text
    assert "the last on w" in text
    assert "ArithmeticError: pass/9 has no result" in text
    assert "fake_sessions.py" in text


def test_models_that_no_worker_can_open_end_in_an_error_that_says_why(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterError, match="FileNotFoundError: no such model"):
        run(cluster, Listed(units(2, holds="missing")))


def test_models_that_have_changed_while_they_were_used_end_the_job(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterError, match="ArithmeticError: a weight has changed"):
        run(cluster, Listed(units(2, holds="changed")))


def test_a_worker_that_dies_when_it_is_asked_at_the_end_is_told(cluster: LocalCluster) -> None:
    listed = Listed(units(2, holds="dying"))
    monitor = run(cluster, listed)
    check_results(listed)
    assert any("was lost before it could say" in text for text in monitor.notes)


def test_resources_that_the_cluster_has_not_end_in_an_error_after_the_stated_wait(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterError) as caught:
        run(cluster, Listed(units(2)), gpus_per_worker=1.0, workers=2, wait=2.0)
    text = str(caught.value)
    assert "no worker took any of the 2 units left for 2 s" in text
    assert "asked the Ray cluster for 2 workers with 1 CPU, 1 GPU" in text
    assert "it has 2 CPU, 0 GPU" in text
    assert "gpus_per_worker" in text


@pytest.mark.parametrize(("address", "said"), [("127.0.0.1:1", "Connection refused"), ("ray://x", "host:port")])
def test_an_address_without_a_cluster_is_named(address: str, said: str) -> None:
    import ray

    ray.shutdown()
    workers = RayWorkers(RunSpec(ray=address), FakeOpener(), MEMORY)
    with pytest.raises(ClusterError, match="ray start --head") as caught:
        workers.start()
    assert said in str(caught.value)
    assert address in str(caught.value)


def test_times_are_measured_on_the_node_with_that_resource_and_nothing_else_is() -> None:
    with local_cluster(1) as cluster:
        cluster.add_node(resources={"quiet": 1})
        timed = Unit("core", "who:timings", ("a",), needs="quiet")
        listed = Listed([*units(6, "who:"), timed])
        run(cluster, listed, quiet="quiet", workers=1)
    processes = [str(result) for result in listed.results.values()]
    assert len(processes) == 7
    assert processes.count(str(listed.results[timed])) == 1


def test_room_is_counted_by_the_scarcest_resource_of_each_node() -> None:
    asked = Asked(cpus=2, gpus=0.5, memory=10e9)
    assert asked.count_in({"CPU": 16.0, "GPU": 2.0, "memory": 100e9}) == 4
    assert asked.count_in({"CPU": 16.0, "memory": 100e9}) == 0
    assert Asked(cpus=1, gpus=0, memory=10e9).count_in({"CPU": 16.0, "memory": 35e9}) == 3


def kill_at_random(cluster: LocalCluster, seed: int, what: str) -> tuple[Listed, float, float]:
    """Dispatch on two nodes while a worker or a node is killed at a random moment; with the seconds it took, and those
    of the work itself."""
    draw = random.Random(seed)
    listed = Listed(units(12))
    moment = draw.uniform(0.0, 5 * SLOW)

    def act(closed: int) -> None:
        if closed == 1:
            threading.Timer(moment, kill).start()

    def kill() -> None:
        if what == "node":
            cluster.kill_node(draw.choice(cluster.nodes))
        elif processes := list_actors():
            os.kill(draw.choice(processes), signal.SIGKILL)

    monitor = Watching(act)
    began = time.monotonic()
    run(cluster, listed, monitor)
    return listed, time.monotonic() - began, SLOW * len(listed.units)


@pytest.mark.slow  # in a regular run tests/cluster/test_job.py lets workers die at chosen moments, without Ray
@pytest.mark.parametrize("seed", range(20))
def test_a_worker_killed_at_any_moment_changes_no_result(cluster: LocalCluster, seed: int) -> None:
    listed, _, _ = kill_at_random(cluster, seed, "worker")
    check_results(listed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_node_killed_at_any_moment_changes_no_result(seed: int) -> None:
    with local_cluster(3) as cluster:
        listed, _, _ = kill_at_random(cluster, seed, "node")
    check_results(listed)
