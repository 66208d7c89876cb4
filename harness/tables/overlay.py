"""Tables on disk, with further units that only this process has: for one that may read the tables of a run and not
write them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import TableError
from harness.tables import journal
from harness.tables.journal import Entry, Part
from harness.tables.store import StoreReader, SuiteSink, TableFile, encode_unit

if TYPE_CHECKING:
    import pandas as pd


def read_version(folder: Path) -> str:
    """The SHA-256 of the journal of some tables, which changes with every unit. Raises TableError."""
    try:
        return hashlib.sha256((folder / journal.NAME).read_bytes()).hexdigest()
    except OSError as error:
        raise TableError(f"{folder}: could not be read: {error}") from error


class Overlay(StoreReader):
    """The tables of a run as they are, and what is committed here on top of them.

    added: the files of each unit that was committed here, by suite and unit.
    """

    messages: tuple[str, ...] = ()

    def __init__(self, folder: Path, data_key: str) -> None:
        """Open ``folder``. Raises TableError."""
        super().__init__(folder, data_key)
        self.added: dict[tuple[str, str], tuple[TableFile, ...]] = {}
        self._held: dict[str, bytes] = {}

    def sink(self, suite: str) -> SuiteSink:
        """The sink for the rows of ``suite``."""
        return SuiteSink(self, suite)

    def done(self, suite: str, unit: str) -> bool:
        """Whether the unit was committed, there or here."""
        return (suite, unit) in self.added or self.holds(suite, unit)

    def commit(
        self, suite: str, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame]
    ) -> None:
        """See Sink.commit. Nothing is written; rows are read back as from a file."""
        files = self.added[suite, unit] = encode_unit(unit, frames, snapshots)
        parts = tuple(file.name_part(suite, -len(self.added)) for file in files)
        self._held |= {part.file: file.data for part, file in zip(parts, files, strict=True)}
        self._entries.append(Entry(suite, unit, parts))

    def close(self) -> None:
        """Nothing to let go of."""

    def _read_file(self, part: Part) -> bytes:
        return self._held[part.file] if part.file in self._held else super()._read_file(part)
