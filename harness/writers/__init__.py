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

from harness.records import Failure, Plugin, Run
from harness.report.digest import Digest, digest, digest_failure
from harness.system.files import write_atomic
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
    portable: ClassVar[bool] = False
    """Whether its file depends on the run and its tables alone, so that any process may write it, into any folder."""

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

    def write_failure(self, failure: Failure, folder: Path) -> Path | None:
        """Write ``file_name`` for a run that could not be made; None where its format has nothing to say of that.

        Raises WriteError.
        """
        return None

    def announce_failure(self, failure: Failure, folder: Path | None, environment: Mapping[str, str]) -> str:
        """What `announce` is for a run that could not be made. folder: None where it has none. Raises WriteError."""
        return ""


class DigestWriter(Writer):
    """A writer that formats the digest and nothing else, so that it says the same way why there is no run."""

    @abstractmethod
    def encode(self, told: Digest) -> bytes:
        """The content of the file. Raises WriteError."""

    def show(self, told: Digest, environment: Mapping[str, str]) -> str:
        """As `announce`, of the digest."""
        return ""

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write the file atomically. Raises WriteError."""
        return self._put(digest(run, folder), folder)

    def write_failure(self, failure: Failure, folder: Path) -> Path:
        """Write the file atomically. Raises WriteError."""
        return self._put(digest_failure(failure, folder), folder)

    def announce(self, run: Run, folder: Path, environment: Mapping[str, str]) -> str:
        """What the digest of the run shows. Raises WriteError."""
        return self.show(digest(run, folder), environment)

    def announce_failure(self, failure: Failure, folder: Path | None, environment: Mapping[str, str]) -> str:
        """What the digest of the failure shows. Raises WriteError."""
        return self.show(digest_failure(failure, folder), environment)

    def _put(self, told: Digest, folder: Path) -> Path:
        path = folder / self.file_name
        write_atomic(path, self.encode(told))
        return path


BASE = Writer
