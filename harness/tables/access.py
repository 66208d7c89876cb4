"""What others see of the tables of a run: where rows go, and where they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pandas as pd


class Sink(Protocol):
    """Where the rows about one variant go."""

    def done(self, unit: str) -> bool:
        """Whether the unit was committed, in this process or in one that was killed."""
        ...

    def commit(
        self, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame] | None = None
    ) -> None:
        """Keep the rows of one unit, by table name: all of them or, if the process dies, none.

        A snapshot is the whole table so far; it replaces what earlier units committed under that name.
        """
        ...

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """What has been committed to a table so far."""
        ...


class Tables(Protocol):
    """Read access to the tables of a run."""

    def suites(self) -> tuple[str, ...]:
        """Names of the suites that left tables."""
        ...

    def read(self, suite: str, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """One table, or None where the run did not make it."""
        ...
