"""Units of the work on a suite: listed before anything runs, and shared out among processes.

A process that computes some of the units finds the others done (``OwnUnits``), as if an earlier process had committed
them; so whatever resumes after a kill can be shared out, too. Units are listed by asking what would be done if all of
it were done (``AllDone``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.concluding.pair import Unit
from harness.lockstep.batches import Block

if TYPE_CHECKING:
    import pandas as pd

    from harness.tables.access import Sink

ARTIFACT = Unit(suite="", name="artifact", kind="artifact")
"""Files are compared and the artifact is observed by one process."""
FILES = Unit(suite="", name="files", kind="files")
"""Files are compared, and nothing is saved."""


@dataclass(frozen=True)
class OwnUnits:
    """The sink of a process that computes some units: others count as done."""

    sink: Sink
    computes: Callable[[str], bool]

    def done(self, unit: str) -> bool:
        """Whether the unit was committed, or is for another process to commit."""
        return self.sink.done(unit) or not self.computes(unit)

    def commit(
        self, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame] | None = None
    ) -> None:
        """See Sink.commit."""
        self.sink.commit(unit, frames, snapshots)

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """See Sink.read."""
        return self.sink.read(table, columns)

    def read_parts(self, table: str) -> Iterator[pd.DataFrame]:
        """See Sink.read_parts."""
        return self.sink.read_parts(table)


@dataclass
class AllDone:
    """A sink that calls every unit done, and keeps the names of those that it was asked about, in order."""

    asked: dict[str, None] = field(default_factory=dict)

    def done(self, unit: str) -> bool:
        """True; the unit is noted."""
        self.asked[unit] = None
        return True

    def commit(
        self, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame] | None = None
    ) -> None:
        """Refused: a probe must leave units alone that are done."""
        raise AssertionError(f"unit {unit} is done, and was committed")

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """Nothing."""
        return None

    def read_parts(self, table: str) -> Iterator[pd.DataFrame]:
        """Nothing."""
        return iter(())


def list_blocks(suite: str, stages: Sequence[Sequence[Block]]) -> Iterator[Unit]:
    """The units of a shared pass."""
    for stage, blocks in enumerate(stages):
        for block in blocks:
            tokens = sum(length - 1 for batch in block.batches for length in batch.lengths)
            yield Unit(suite=suite, name=block.unit, kind="shared_pass", stage=stage, tokens=tokens)


def stages_of(units: Sequence[Unit], suite: str) -> list[list[Block]]:
    """The blocks of a suite's pass as far as units tell: which there are at which stage, without their batches."""
    stages: list[list[Block]] = []
    for unit in units:
        if unit.kind == "shared_pass" and unit.suite == suite:
            stages += [[] for _ in range(unit.stage + 1 - len(stages))]
            stages[unit.stage].append(Block(int(unit.name.rpartition("/")[2]), ()))
    return stages
