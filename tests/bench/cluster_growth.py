"""How far a sweep on a cluster goes, by simulation with constants that are measured on this machine. A script.

    python tests/bench/cluster_growth.py                                      a minute
    python tests/bench/cluster_growth.py --variants 40 --nodes 4 --sizes 8

The dispatcher is the real one (harness/cluster/dispatch.py); workers are simulated, and the head is busy with every
result for as long as handing out, and storing rows of that size, takes here. Times of models are arithmetic: operations
by OPERATIONS_ON_GPU of the forecast, loading by bytes and bandwidth.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.cluster.dispatch import Dispatcher
from harness.cluster.workers import Failed, Unit
from harness.forecast.cost import FORWARD_EFFICIENCY, OPERATIONS_ON_GPU
from harness.tables.store import Store, encode_unit
from tests.helpers.simulated_workers import Silent, SimulatedWorkers

BLOCK_TOKENS, BLOCKS = 4096, 25
"""A suite of 200 documents of 512 tokens on a GPU."""
TASK_UNITS, TASK_SECONDS_FOR_8B = 9, 60.0
"""Units of tasks, and what one of them takes both sides of a model of 8 billion parameters."""
STORAGE = 2e9
"""Bytes per second at which one worker reads from the shared file system."""
MESSAGE = 1e-3
"""Seconds of a call through Ray on one machine, as measured with an empty method."""
FLOATS, INTEGERS = 13, 4
"""Columns of the table of tokens."""
AT_ONCE = {8: 4, 70: 3}
"""Variants that fit beside the reference: 80 GB of one GPU, 640 GB of a node of eight."""


@dataclass(frozen=True)
class Constants:
    """Seconds and bytes for one unit of one variant."""

    dispatch: float
    commit: float
    sent: int
    stored: int
    journal: int


class Units:
    """A job whose units are all known from the start."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units, self.committed = units, 0

    def next_units(self, closed: Unit | None) -> Iterable[Unit]:
        """All, at the beginning."""
        return self._units if closed is None else ()

    def trim(self, unit: Unit) -> Unit:
        """The unit."""
        return unit

    def find_fault(self, unit: Unit, result: object) -> str:
        """None."""
        return ""

    def commit(self, unit: Unit, result: object) -> None:
        """Counted."""
        self.committed += 1

    def give_up(self, failed: Failed) -> Iterable[Unit]:
        """Nothing fails."""
        raise AssertionError(failed)


def measure_constants(units: int = 40) -> Constants:
    """What the head does for a unit, on this machine; of storing the quick tenth, lest other processes count."""
    draw = np.random.default_rng(0)
    columns = {f"number {n}": draw.standard_normal(BLOCK_TOKENS).astype(np.float32) for n in range(FLOATS)}
    columns |= {f"id {n}": draw.integers(0, 100_000, BLOCK_TOKENS).astype(np.int32) for n in range(INTEGERS)}
    frame = pd.DataFrame(columns)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "tables", "key")
        times = []
        files = encode_unit("pass/0", {"tokens": frame}, {})  # which workers do
        for number in range(units):
            began = time.perf_counter()
            store.commit_files("core", f"pass/{number}", files)
            times.append(time.perf_counter() - began)
        commit = sorted(times)[units // 10]
        stored = sum(path.stat().st_size for path in (Path(folder) / "tables" / "core").iterdir()) // units
        journal = (Path(folder) / "tables" / "journal.jsonl").stat().st_size // units
        store.close()
    many = [Unit("core", f"pass/{number}", ("v",)) for number in range(20_000)]
    workers = SimulatedWorkers({f"w{number}": "" for number in range(100)})
    began = time.process_time()
    Dispatcher(Units(many), workers, Silent(), clock=workers.clock).go()
    dispatch = (time.process_time() - began) / len(many)
    return Constants(dispatch, commit, len(pickle.dumps(files, protocol=5)), stored, journal)


@dataclass
class Cluster:
    """A sweep of variants of one reference on workers that open a set of them at a time."""

    billions: int
    variants: int
    workers: int
    constants: Constants

    def __post_init__(self) -> None:
        self._held: dict[str, str] = {}
        self.loaded = 0.0

    def list_units(self) -> list[Unit]:
        """Every unit, for all variants of its set."""
        each = AT_ONCE[self.billions]
        names = [f"v{number}" for number in range(self.variants)]
        units = []
        for first in range(0, self.variants, each):
            those = tuple(names[first : first + each])
            for kind, count in (("tasks", TASK_UNITS), ("pass", BLOCKS)):
                cost = (4.0 if kind == "tasks" else 1.0) * len(those)
                units += [Unit("core", f"{kind}/{n}", those, kind, cost=cost, holds=str(first)) for n in range(count)]
        return units

    def seconds(self, worker: str, unit: Unit) -> float:
        """Of a unit, with what it takes to open its models where others are open."""
        sides = 1 + len(unit.variants)
        gpus = 1 if self.billions == 8 else 8
        forward = 2 * self.billions * 1e9 * BLOCK_TOKENS / (OPERATIONS_ON_GPU * FORWARD_EFFICIENCY * gpus)
        tasks = TASK_SECONDS_FOR_8B / 2 * self.billions / 8 / gpus
        work = sides * (tasks if unit.kind == "tasks" else forward)
        if self._held.get(worker) == unit.holds:
            return work
        self._held[worker] = unit.holds
        size = 2 * self.billions * 1e9 * sides
        self.loaded += size
        return work + size / STORAGE

    def head(self, unit: Unit) -> float:
        """How long the head is busy with a result."""
        return self.constants.dispatch + len(unit.variants) * self.constants.commit

    def simulate(self) -> dict[str, float]:
        """What the sweep takes and moves."""
        units = self.list_units()
        crew = SimulatedWorkers(
            {f"w{number}": "" for number in range(self.workers)},
            compute=lambda worker, unit: None,
            seconds=self.seconds,
            latency=MESSAGE,
            head=self.head,
        )
        job = Units(units)
        Dispatcher(job, crew, Silent(), clock=crew.clock).go()
        rows = sum(len(unit.variants) for unit in units)
        head = sum(map(self.head, units))
        busy = sum(crew.busy.values())
        return {
            "hours": crew.now / 3600,
            "workers busy": busy / (crew.now * self.workers),
            "head busy": head / crew.now,
            "TB read": self.loaded / 1e12,
            "GB of rows": rows * self.constants.sent / 1e9,
            "MB in flight": 2 * self.workers * AT_ONCE[self.billions] * self.constants.sent / 1e6,
            "journal lines a second": rows / crew.now,
            "journal MB": rows * self.constants.journal / 1e6,
        }


def main() -> None:
    """Measure, simulate, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--variants", type=int, default=1000)
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 10, 100, 1000])
    parser.add_argument("--sizes", type=int, nargs="*", default=[8, 70])
    parser.add_argument(
        "--store-ms", type=float, help="in place of the time that storing rows takes on this machine now"
    )
    asked = parser.parse_args()
    constants = measure_constants()
    if asked.store_ms is not None:
        constants = replace(constants, commit=asked.store_ms / 1e3)
    print(
        f"head: {1e6 * constants.dispatch:.0f} µs to hand out a unit, {1e3 * constants.commit:.1f} ms to store the "
        f"rows of a variant ({constants.sent / 1e3:.0f} kB sent, {constants.stored / 1e3:.0f} kB stored, "
        f"{constants.journal} bytes of journal)\n"
    )
    head: list[str] = []
    for billions in asked.sizes:
        for nodes in asked.nodes:
            workers = nodes * (8 if billions == 8 else 1)
            found = Cluster(billions, asked.variants, workers, constants).simulate()
            if not head:
                head = ["size", "nodes", "workers", *found]
                print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
            values = [f"{value:.3g}" for value in found.values()]
            print(f"| {billions} B | {nodes} | {workers} | {' | '.join(values)} |")


if __name__ == "__main__":
    main()
