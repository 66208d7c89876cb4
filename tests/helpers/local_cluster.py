"""Ray nodes on this machine for tests, gone with every process of theirs afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}
"""So that a node that was killed counts as dead after seconds; Ray's own setting takes a quarter of a minute."""
STORE_BYTES = 80 * 2**20
OWN = ("raylet", "gcs_server", "ray::", "default_worker.py", "setup_worker.py", "ray/dashboard", "log_monitor.py")


class LocalCluster:
    """``nodes`` of one core each, of which the first is the head of the cluster."""

    def __init__(self, nodes: int, **more: Any) -> None:
        from ray.cluster_utils import Cluster

        settings = {"object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(
            initialize_head=True, head_node_args={**settings, "num_cpus": 1, "_system_config": QUICK_TO_NOTICE}
        )
        self.nodes = [self.add_node(**more) for _ in range(nodes - 1)]
        """All but the head."""

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add_node(self, **more: Any) -> Any:
        return self._cluster.add_node(**{"num_cpus": 1, "object_store_memory": STORE_BYTES, **more})

    def kill_node(self, node: Any) -> None:
        """SIGKILL, as a machine that loses its power."""
        for process in node.all_processes["raylet"]:
            os.kill(process.process.pid, signal.SIGKILL)

    def close(self) -> None:
        self._cluster.shutdown()


def list_own_processes() -> list[int]:
    """Ray's processes that descend from this one."""
    return [process for process in _descendants(os.getpid()) if any(name in _command(process) for name in OWN)]


def _descendants(parent: int) -> Iterator[int]:
    for path in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in path.read_text().split():
            yield int(child)
            yield from _descendants(int(child))


def list_actors() -> list[int]:
    """The processes of workers that have an actor."""
    return [process for process in _descendants(os.getpid()) if "ray::Worker" in _command(process)]


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@contextmanager
def local_cluster(nodes: int, **more: Any) -> Iterator[LocalCluster]:
    """A cluster for the time of a test."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    before = set(list_own_processes())
    cluster = LocalCluster(nodes, **more)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.close()
        deadline = time.monotonic() + 20
        while set(list_own_processes()) - before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert set(list_own_processes()) - before == set()
