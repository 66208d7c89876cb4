"""Tables on disk: Parquet parts and a journal, so that a killed run resumes where it stopped.

    folder/journal.jsonl                committed units and their part files (harness/tables/journal.py)
    folder/<suite>/7.<table>.parquet    the rows of one unit
    folder/lock                         held (flock) by the one process that writes

``Store`` writes and reads; ``StoreReader`` opens the tables of a finished run, takes no lock and changes nothing. Rows
are read in the order of their units' names ("pass/9" before "pass/10"), so a resumed store reads exactly like one that
was never interrupted.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from harness.errors import TableError, WriteError
from harness.system.files import sync_folder
from harness.system.held_folder import hold
from harness.tables import journal
from harness.tables.journal import DamagedLine, DroppedUnit, Entry, Part

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from harness.tables.access import Writable


LOCK = "lock"
TABLES = "tables"
"""The folder of the tables in that of a run."""


class TableFile(NamedTuple):
    """One table of a unit as a Parquet file. snapshot: it is the whole table so far, not the rows of the unit."""

    table: str
    rows: int
    snapshot: bool
    data: bytes

    def name_part(self, suite: str, number: int) -> Part:
        """The part that it becomes in the tables of a run, as the ``number``-th unit."""
        file = f"{_file_name(suite)}/{number}.{_file_name(self.table)}.parquet"
        return Part(self.table, file, self.rows, len(self.data), hashlib.sha256(self.data).hexdigest(), self.snapshot)


class StoreReader:
    """Read access to the tables of a finished run. Any damage raises TableError, since a reader cannot repair it."""

    def __init__(self, folder: Path, data_key: str | None = None) -> None:
        """Open ``folder``. Raises TableError if ``data_key`` is given and the tables belong to another one."""
        self.folder = folder
        content = journal.read(folder)
        if content.data_key is None:
            raise TableError(
                f"{folder}: found no readable {journal.NAME}, expected the tables of a run; run the check again"
            )
        if data_key is not None and content.data_key != data_key:
            raise TableError(
                f"{folder}: the tables belong to data key {content.data_key}, expected {data_key}; run the check again"
            )
        for line in content.lines:
            if isinstance(line, DamagedLine):
                raise TableError(f"{folder / journal.NAME}: line {line.number} is damaged; run the check again")
        self.data_key = content.data_key
        self._entries = [line for line in content.lines if isinstance(line, Entry)]

    def suites(self) -> tuple[str, ...]:
        """Names of the suites that have tables, sorted."""
        return tuple(sorted({entry.suite for entry in self._entries}))

    def units(self, suite: str) -> tuple[str, ...]:
        """The committed units of a suite, in reading order."""
        return tuple(entry.unit for entry in self._entries_in_order(suite))

    def tables(self, suite: str) -> tuple[str, ...]:
        """Names of the tables of a suite, sorted."""
        return tuple(sorted({part.table for entry in self._entries_in_order(suite) for part in entry.parts}))

    def read(self, suite: str, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """One table, or None if the run has none of that name; rows in the order of their units.

        Raises TableError for a damaged file, a missing column, or parts whose column types differ.
        """
        import pyarrow as pa

        parts = self._current_parts(suite, table)
        if not parts:
            return None
        loaded = [self._load(part, columns) for part in parts]
        try:
            # permissive: a part with only empty lists or nulls takes the type of the other parts
            frame: pd.DataFrame = pa.concat_tables(loaded, promote_options="permissive").to_pandas()
        except pa.ArrowException as error:
            raise TableError(
                f"{self.folder}: parts of the table {suite}/{table} contradict each other: {error}"
            ) from error
        return frame

    def read_parts(self, suite: str, table: str) -> Iterator[pd.DataFrame]:
        """The rows of a table unit by unit, in the order of their units. Raises TableError."""
        for part in self._current_parts(suite, table):
            yield self._load(part, None).to_pandas()

    def holds(self, suite: str, unit: str) -> bool:
        """Whether a unit was committed."""
        return (suite, unit) in self._parts_by_unit

    def load_unit(self, suite: str, unit: str) -> Iterator[tuple[Part, bytes]]:
        """The files of one unit as they were written, for another store to adopt, without those that a later snapshot
        replaced. Raises TableError.
        """
        for part in self._parts_by_unit.get((suite, unit), ()):
            if part in self._stored_parts(suite, part.table):
                yield part, self._read_file(part)

    @cached_property
    def _parts_by_unit(self) -> dict[tuple[str, str], tuple[Part, ...]]:
        return {(entry.suite, entry.unit): entry.parts for entry in self._entries}

    def _stored_parts(self, suite: str, table: str) -> list[Part]:
        """The parts of a table whose files are there, in the order in which they were written."""
        parts = [part for entry in self._entries if entry.suite == suite for part in entry.parts if part.table == table]
        last = max((index for index, part in enumerate(parts) if part.snapshot), default=0)
        return parts[last:]

    def _current_parts(self, suite: str, table: str) -> list[Part]:
        """What a table consists of, in reading order: its last snapshot, or the rows of every unit."""
        parts = [part for entry in self._entries_in_order(suite) for part in entry.parts if part.table == table]
        return [self._last_snapshot(suite, table)] if any(part.snapshot for part in parts) else parts

    def _entries_in_order(self, suite: str) -> list[Entry]:
        return sorted(
            (entry for entry in self._entries if entry.suite == suite), key=lambda entry: _natural_order(entry.unit)
        )

    def _last_snapshot(self, suite: str, table: str) -> Part:
        entry = next(entry for entry in reversed(self._entries) if (suite, table) in entry.snapshots())
        return next(part for part in entry.parts if part.table == table)

    def _load(self, part: Part, columns: tuple[str, ...] | None) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            # Parts are small: read_table, which can do far more, takes three times as long for one.
            file = pq.ParquetFile(pa.BufferReader(self._read_file(part)), pre_buffer=False)
            names = file.schema_arrow.names
            wanted = [name for name in names if columns is None or name in columns]
            table: pa.Table = file.read(wanted, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise TableError(f"{self.folder / part.file}: not readable as Parquet: {error}") from error
        if missing := [name for name in columns or () if name not in names]:
            has = ", ".join(names)
            raise TableError(f"{self.folder / part.file}: has no column {', '.join(missing)} (has {has})")
        return table.select(list(columns)) if columns is not None else table

    def _read_file(self, part: Part) -> bytes:
        try:
            data = (self.folder / part.file).read_bytes()
        except OSError as error:
            raise TableError(f"{self.folder / part.file}: could not be read: {error}") from error
        if reason := journal.check(part, data):
            raise TableError(f"{self.folder}: {reason}; run the check again")
        return data


class SuiteSink:
    """Receives the rows of one suite."""

    def __init__(self, store: Writable, suite: str) -> None:
        self._store, self._suite = store, suite

    def done(self, unit: str) -> bool:
        """Whether the unit was committed, in this process or in one that was killed."""
        return self._store.done(self._suite, unit)

    def commit(
        self,
        unit: str,
        frames: Mapping[str, pd.DataFrame],
        snapshots: Mapping[str, pd.DataFrame] | None = None,
    ) -> None:
        """Store the rows of one unit, by table name, atomically: all of them or, if the process dies, none.

        A snapshot is the whole table so far; it replaces all that was committed under the same name.
        Raises TableError if the unit was committed before or cannot be written; earlier units stay intact.
        """
        self._store.commit(self._suite, unit, frames, snapshots or {})

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """What has been committed to a table so far."""
        return self._store.read(self._suite, table, columns)

    def read_parts(self, table: str) -> Iterator[pd.DataFrame]:
        """What has been committed to a table so far, unit by unit, in the order of their units."""
        return self._store.read_parts(self._suite, table)


class Store(StoreReader):
    """The tables of one run, for the one process that writes them.

    cleared: why all earlier content was deleted ("" if it was not). dropped: units of earlier processes whose rows were
    damaged; they count as not done and are computed again.
    """

    cleared: str
    dropped: tuple[DroppedUnit, ...]

    def __init__(self, folder: Path, data_key: str) -> None:
        """Open or create ``folder``. Raises TableError if another process has it open or it cannot be written."""
        self.folder, self.data_key = folder, data_key
        self._entries: list[Entry] = []
        self._lock: int | None
        try:
            self._lock = hold(folder, LOCK, (journal.NAME,))
        except WriteError as error:
            raise TableError(str(error)) from error
        try:
            self._recover()
        except OSError as error:
            self.close()
            raise TableError(f"{folder}: could not be opened for writing: {error}") from error
        except BaseException:
            self.close()
            raise
        self._done = {(entry.suite, entry.unit) for entry in self._entries}
        numbers = [int(Path(part.file).name.partition(".")[0]) for entry in self._entries for part in entry.parts]
        self._next = 1 + max(numbers, default=0)

    @property
    def messages(self) -> tuple[str, ...]:
        """Sentences about earlier tables that were cleared or dropped; empty if none were."""
        cleared = (f"earlier tables were cleared: {self.cleared}",) if self.cleared else ()
        lost = tuple(f"{d.suite} {d.unit}".strip() + f" is computed again: {d.reason}" for d in self.dropped)
        return cleared + lost

    def close(self) -> None:
        """Release the lock; reading still works."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def sink(self, suite: str) -> SuiteSink:
        """The sink for the rows of ``suite``."""
        return SuiteSink(self, suite)

    def done(self, suite: str, unit: str) -> bool:
        """Whether the unit was committed."""
        return (suite, unit) in self._done

    def commit(
        self, suite: str, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame]
    ) -> None:
        """See Sink.commit."""
        self.commit_files(suite, unit, encode_unit(unit, frames, snapshots))

    def adopt(self, source: StoreReader, suite: str, unit: str) -> None:
        """Store a unit as another store holds it, byte for byte. Raises TableError if it is damaged there."""
        files = source.load_unit(suite, unit)
        self.commit_files(suite, unit, (TableFile(part.table, part.rows, part.snapshot, data) for part, data in files))

    def commit_files(self, suite: str, unit: str, tables: Iterable[TableFile]) -> None:
        """Write the tables of one unit, which may have been encoded elsewhere, then its line. Raises TableError."""
        if self._lock is None:
            raise TableError(f"{self.folder}: the store is closed, so nothing can be committed")
        if self.done(suite, unit):
            raise TableError(f"{self.folder}: unit {unit!r} of suite {suite!r} is already committed")
        number, self._next = self._next, self._next + 1
        try:
            parts = tuple(self._write(suite, number, table) for table in tables)
            sync_folder(self.folder / _file_name(suite))
            entry = Entry(suite, unit, parts)
            journal.append(self.folder, entry)
            replaced = [old for part in parts if part.snapshot for old in self._stored_parts(suite, part.table)]
            self._entries.append(entry)
            self._done.add((suite, unit))
            for part in replaced:
                os.unlink(self.folder / part.file)
        except OSError as error:
            raise TableError(
                f"{self.folder}: unit {unit!r} of suite {suite!r} could not be written: {error}; "
                "units committed before are intact, and the same command resumes from there"
            ) from error

    def _write(self, suite: str, number: int, table: TableFile) -> Part:
        part = table.name_part(suite, number)
        journal.put_file(self.folder / part.file, table.data)
        return part

    def _recover(self) -> None:
        """Keep the intact units of earlier processes; delete everything else."""
        content = journal.read(self.folder)
        fresh = not (self.folder / journal.NAME).exists()
        self.cleared, dropped = "", {}
        if content.data_key == self.data_key:
            dropped = dict(journal.find_unusable(self.folder, content.lines))
        elif content.data_key is not None:
            self.cleared = f"the tables belonged to data key {content.data_key}, this run has {self.data_key}"
        elif not fresh:
            self.cleared = f"the first line of {journal.NAME} is damaged, so the data key of the tables is unknown"
        self.dropped = tuple(dropped.values())
        if content.data_key == self.data_key:
            kept = [line for index, line in enumerate(content.lines) if index not in dropped]
            self._entries = [line for line in kept if isinstance(line, Entry)]
        if fresh or self.cleared or self.dropped:
            journal.rewrite(self.folder, self.data_key, tuple(self._entries))
        self._delete_orphans()

    def _delete_orphans(self) -> None:
        """Delete parts that no entry lists, temporary files, and parts that a snapshot replaced."""
        tables = {(entry.suite, part.table) for entry in self._entries for part in entry.parts}
        named = {part.file for suite, table in tables for part in self._stored_parts(suite, table)}
        for path in self._own_files():
            if path.relative_to(self.folder).as_posix() not in named:
                os.unlink(path)

    def _own_files(self) -> Iterator[Path]:
        """Files below the folder that carry the name of a part or of a temporary file, in folders that are no links."""
        for folder in sorted(self.folder.iterdir()):
            if folder.name == f"{journal.NAME}.tmp":
                yield folder
            elif folder.is_dir() and not folder.is_symlink():
                names = (f"{folder.name}/{name}" for name in sorted(os.listdir(folder)))
                yield from (self.folder / name for name in names if journal.is_part_file(name.removesuffix(".tmp")))


def encode_unit(
    unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame]
) -> tuple[TableFile, ...]:
    """The tables of a unit as files, rows first. Raises TableError where a table is given both ways."""
    if twice := sorted(frames.keys() & snapshots.keys()):
        raise TableError(f"unit {unit!r} has {', '.join(twice)} both as rows and as a snapshot")
    tables = [(name, frame, False) for name, frame in sorted(frames.items())]
    tables += [(name, frame, True) for name, frame in sorted(snapshots.items())]
    return tuple(TableFile(name, len(frame), snapshot, _encode(frame)) for name, frame, snapshot in tables)


def _encode(frame: pd.DataFrame) -> bytes:
    """The Parquet file of a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    rows = pa.Table.from_pandas(frame, preserve_index=False)
    # numbers seldom repeat, so dictionary encoding would only cost time and space
    words = [
        field.name for field in rows.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    pq.write_table(rows, buffer, compression="zstd", use_dictionary=words or False)
    return buffer.getvalue()


def _natural_order(unit: str) -> tuple[str | int, ...]:
    """Sorting key in which numbers inside a name count as numbers."""
    return tuple(int(piece) if index % 2 else piece for index, piece in enumerate(re.split(r"(\d+)", unit)))


def _file_name(name: str) -> str:
    """A file name for any suite or table name: injective, and never a path outside the folder."""
    quoted = quote(name, safe=" +")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted
