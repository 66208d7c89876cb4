"""Writers make an output file from a finished run and its tables. One file is one writer.

run.json is none of them: it is always written, last, so that one which passes has every output beside it; outputs are
made from the same record.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.records import Plugin, Run
from harness.tables.access import Tables

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+")
RUN_FILE = "run.json"
"""The record of a run, which no writer may replace."""


class Writer(Plugin):
    """One output format. The fields are the settings that ``outputs:`` in a variant file may give."""

    family = "writers"
    by_name = True

    file_name: ClassVar[str]
    """The file that it leaves in the folder of the run, by which an old one is removed before a new check."""

    @classmethod
    def unfit(cls) -> str:
        """Whether its file would not lie in the folder of the run, or take the place of run.json."""
        if _FILE_NAME.fullmatch(cls.file_name) and cls.file_name.casefold() != RUN_FILE:
            return ""
        expected = f"a plain name with a suffix, such as summary.md, and not {RUN_FILE}"
        return f"file_name is {cls.file_name!r}, expected {expected}"

    @classmethod
    def suits(cls, environment: Mapping[str, str]) -> bool:
        """Whether it is written without being asked for, because the environment variables show what reads it."""
        return False

    @abstractmethod
    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write ``file_name`` into ``folder``, atomically, and return its path. Raises WriteError."""

    def announce(self, run: Run, folder: Path, environment: Mapping[str, str]) -> str:
        """What the finished run shows where it runs, once run.json is written; returns lines for standard output.

        Raises WriteError, which is told and changes no verdict: everything is in the folder of the run.
        """
        return ""


BASE = Writer
