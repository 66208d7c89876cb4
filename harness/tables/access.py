"""Protocols for the tables of a run: ``Sink`` receives rows, ``Tables`` reads them, ``Writable`` does both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pandas as pd


class Sink(Protocol):
    """Receives the rows of one variant."""

    def done(self, unit: str) -> bool:
        """Whether the unit was committed, by this process or by an earlier one that was killed."""
        ...

    def commit(
        self, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame] | None = None
    ) -> None:
        """Store the rows of one unit, by table name, atomically: all of them or, if the process dies, none.

        A snapshot is the whole table so far; it replaces all that was committed under that name.
        """
        ...

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """The rows committed to a table so far."""
        ...

    def read_parts(self, table: str) -> Iterator[pd.DataFrame]:
        """The rows committed to a table so far, unit by unit, in the order of their units."""
        ...


class Tables(Protocol):
    """Read access to the tables of a run."""

    def suites(self) -> tuple[str, ...]:
        """Names of the suites that have tables."""
        ...

    def read(self, suite: str, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """One table, or None if the run has none of that name."""
        ...


class Writable(Protocol):
    """Tables that rows can be committed to and read from, suite by suite."""

    def done(self, suite: str, unit: str) -> bool:
        """Whether the unit was committed."""
        ...

    def commit(
        self, suite: str, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame]
    ) -> None:
        """See Sink.commit."""
        ...

    def read(self, suite: str, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """See Tables.read."""
        ...

    def read_parts(self, suite: str, table: str) -> Iterator[pd.DataFrame]:
        """See Sink.read_parts."""
        ...
