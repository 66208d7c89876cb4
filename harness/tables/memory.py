"""Tables in memory: for rows that need not be stored, or that another process will store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class MemoryTables:
    """The rows of one suite (see harness.tables.access.Sink)."""

    units: dict[str, dict[str, pd.DataFrame]] = field(default_factory=dict)
    """Rows of each unit, by table."""
    snapshots: dict[str, pd.DataFrame] = field(default_factory=dict)
    combine: Mapping[str, Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame]] = field(default_factory=dict)
    """For tables of sums: the sums so far and those of the next unit, added up. Only the sums so far are kept then, and
    units must come in their order."""

    def done(self, unit: str) -> bool:
        """Whether the unit was committed."""
        return unit in self.units

    def commit(
        self, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame] | None = None
    ) -> None:
        """Store the rows of one unit."""
        self.units[unit] = {table: rows for table, rows in frames.items() if table not in self.combine}
        for table in frames.keys() & self.combine.keys():
            earlier, rows = self.snapshots.get(table), frames[table]
            self.snapshots[table] = rows if earlier is None else self.combine[table](earlier, rows)
        self.snapshots |= snapshots or {}

    def read_parts(self, table: str) -> Iterator[pd.DataFrame]:
        """What has been committed to a table, unit by unit, in the order in which it was."""
        if table in self.snapshots:
            yield self.snapshots[table]
        else:
            yield from (frames[table] for frames in self.units.values() if table in frames)

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """What has been committed to a table so far."""
        import pandas as pd

        if not (parts := list(self.read_parts(table))):
            return None
        frame = pd.concat(parts, ignore_index=True)
        return frame if columns is None else frame[list(columns)]

    def join(self) -> dict[str, pd.DataFrame]:
        """Every table."""
        names = dict.fromkeys([*(name for frames in self.units.values() for name in frames), *self.snapshots])
        return {name: frame for name in names if (frame := self.read(name)) is not None}


@dataclass
class MemoryStore:
    """The tables of one variant (see harness.tables.store.Store). folder: where files of the run would be."""

    folder: Path
    by_suite: dict[str, MemoryTables] = field(default_factory=dict)
    messages: tuple[str, ...] = ()

    def sink(self, suite: str) -> MemoryTables:
        """The sink for the rows of ``suite``."""
        return self.by_suite.setdefault(suite, MemoryTables())

    def suites(self) -> tuple[str, ...]:
        """Names of the suites that have tables, sorted."""
        return tuple(sorted(self.by_suite))

    def read(self, suite: str, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """One table, or None if there is none of that name."""
        return self.sink(suite).read(table, columns)

    def close(self) -> None:
        """Nothing to let go of."""
