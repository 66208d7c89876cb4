"""Writers make an output file from a finished run and its tables. One file is one writer."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

from harness.records import Plugin, Run
from harness.tables.access import Tables


class Writer(Plugin):
    """One output format."""

    family = "writers"

    file_name: ClassVar[str] = ""
    """The file it writes, so that one left by an earlier run can be removed before anything is written."""

    @abstractmethod
    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write into ``folder``, atomically, and return the file. Raises WriteError."""


BASE = Writer
