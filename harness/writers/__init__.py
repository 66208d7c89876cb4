"""Writers make an output file from a finished run and its tables. One file is one writer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from harness.records import Plugin, Run

if TYPE_CHECKING:
    import pandas as pd


class Tables(Protocol):
    """Read access to the tables of a run."""

    def suites(self) -> tuple[str, ...]:
        """Names of the suites that left tables."""
        ...

    def read(self, suite: str, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """One table, or None where the run did not make it."""
        ...


class Writer(Plugin):
    """One output format."""

    file_name: ClassVar[str] = ""
    """The file it writes, so that one left by an earlier run can be removed before anything is written."""

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write into ``folder``, atomically, and return the file. Raises WriteError."""
        raise NotImplementedError


BASE = Writer
