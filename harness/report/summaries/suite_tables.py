"""The tables of one suite, as sections of the report read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.report.display import clean

if TYPE_CHECKING:
    import pandas as pd

    from harness.tables.access import Tables


@dataclass(frozen=True)
class SuiteTables:
    """One suite of the run. unread: for each table that could not be read, the reason, which the report shows."""

    name: str
    source: Tables
    unread: dict[str, str] = field(default_factory=dict)
    _frames: dict[tuple[str, tuple[str, ...]], pd.DataFrame | None] = field(default_factory=dict)

    def read(self, table: str, columns: tuple[str, ...]) -> pd.DataFrame | None:
        """The columns of a table, or None if it is absent, empty or damaged.

        A damaged table costs the report a chart, not the report: the verdict already exists.
        """
        if (table, columns) not in self._frames:
            self._frames[table, columns] = self._read(table, columns)
        return self._frames[table, columns]

    def _read(self, table: str, columns: tuple[str, ...]) -> pd.DataFrame | None:
        try:
            frame = self.source.read(self.name, table, columns)
        except HarnessError as error:
            self.unread[table] = clean(str(error))
            return None
        return None if frame is None or frame.empty else frame


def open_suites(source: Tables) -> tuple[list[SuiteTables], str]:
    """All suites that wrote tables; if there are none, the reason."""
    try:
        return [SuiteTables(name, source) for name in source.suites()], ""
    except HarnessError as error:
        return [], clean(str(error))
