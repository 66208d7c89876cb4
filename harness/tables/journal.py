"""The journal of a folder of tables: one line per unit, each with its own checksum.

The first line holds the data key; every other line lists the part files of one unit. A unit exists only once its line
is on disk, so a process that dies leaves only complete units.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import TableError
from harness.system.files import replace_file, sync_folder, write_all

FORMAT = 1
NAME = "journal.jsonl"
_PART_FILE = re.compile(r"(?!\.)[\w.~%+ -]+/\d{1,18}\.[\w.~%+ -]+\.parquet", re.ASCII)
"""Names of part files; nothing else in the folder is ever read or deleted."""
_LONGEST_NAME = 1000
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Part:
    """One file of rows. A snapshot part replaces all earlier parts of its table."""

    table: str
    file: str
    rows: int
    bytes: int
    sha256: str
    snapshot: bool


@dataclass(frozen=True)
class Entry:
    """The committed parts of one unit of one suite."""

    suite: str
    unit: str
    parts: tuple[Part, ...]

    def snapshots(self) -> frozenset[tuple[str, str]]:
        """(suite, table) of every snapshot of the unit."""
        return frozenset((self.suite, part.table) for part in self.parts if part.snapshot)

    def tables(self) -> frozenset[tuple[str, str]]:
        """(suite, table) of every part of the unit."""
        return frozenset((self.suite, part.table) for part in self.parts)


@dataclass(frozen=True)
class DamagedLine:
    """A line that differs from what was written. number: from 1. torn: the last line, cut off mid-write."""

    number: int
    torn: bool


@dataclass(frozen=True)
class DroppedUnit:
    """A committed unit whose rows are damaged, so that it is computed again."""

    suite: str
    unit: str
    reason: str


@dataclass(frozen=True)
class JournalContent:
    """The content of a journal: the data key (None: no readable header) and its lines in file order."""

    data_key: str | None
    lines: tuple[Entry | DamagedLine, ...]


def _encode(value: dict[str, Any]) -> bytes:
    body = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return f'{{"crc":"{zlib.crc32(body.encode()):08x}","entry":{body}}}\n'.encode()


def _decode(line: bytes) -> dict[str, Any] | None:
    """The entry, or None if the bytes are not exactly what ``_encode`` wrote."""
    try:
        value = json.loads(line)["entry"]
        return value if isinstance(value, dict) and _encode(value) == line else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _entry(value: dict[str, Any]) -> Entry | None:
    """The entry; None where a value is not of the type that ``append`` writes, or a file is not a part's."""
    try:
        entry = Entry(value["suite"], value["unit"], tuple(Part(**part) for part in value["parts"]))
    except (KeyError, TypeError):
        return None
    sound = _is_name(entry.suite) and _is_name(entry.unit) and all(_is_sound(part) for part in entry.parts)
    return entry if sound else None


def _is_sound(part: Part) -> bool:
    numbers = type(part.rows) is int and type(part.bytes) is int and type(part.snapshot) is bool
    return numbers and _is_name(part.table) and type(part.sha256) is str and is_part_file(part.file)


def _is_name(value: object) -> bool:
    """Whether a value is text of bounded length that can be written as UTF-8."""
    return isinstance(value, str) and len(value) <= _LONGEST_NAME and not _SURROGATE.search(value)


def is_part_file(name: object) -> bool:
    """Whether ``name``, relative to the folder, is one that the store gives to a part file."""
    return isinstance(name, str) and _PART_FILE.fullmatch(name) is not None


def read(folder: Path) -> JournalContent:
    """The journal of ``folder``; a missing one reads as empty. Raises TableError if it cannot be read."""
    try:
        data = _read_journal(folder / NAME)
    except FileNotFoundError:
        return JournalContent(None, ())
    except OSError as error:
        raise TableError(f"{folder / NAME}: could not be read: {error.strerror or error}") from error
    raw = data.splitlines(keepends=True)
    header = _decode(raw[0]) if raw else None
    if header is None or header.get("format") != FORMAT or not isinstance(header.get("data_key"), str):
        return JournalContent(None, ())
    lines: list[Entry | DamagedLine] = []
    for number, line in enumerate(raw[1:], start=2):
        value = _decode(line)
        entry = _entry(value) if value is not None else None
        lines.append(entry or DamagedLine(number, torn=number == len(raw)))
    return JournalContent(header["data_key"], tuple(lines))


def _read_journal(path: Path) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        return file.read()


def put_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically. The name is durable once ``sync_folder`` has run on its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.is_symlink():
        raise OSError(errno.ELOOP, "found a link, expected a folder", str(path.parent))
    replace_file(path, data, path.with_name(path.name + ".tmp"))


def rewrite(folder: Path, data_key: str, entries: tuple[Entry, ...]) -> None:
    """Replace the journal by one with exactly these entries."""
    lines = [
        _encode({"format": FORMAT, "data_key": data_key}),
        *(_encode(asdict(entry)) for entry in entries),
    ]
    put_file(folder / NAME, b"".join(lines))
    sync_folder(folder)


def append(folder: Path, entry: Entry) -> None:
    """Append one line durably. If writing fails, a partial line is removed."""
    descriptor = os.open(folder / NAME, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
    try:
        length = os.fstat(descriptor).st_size
        try:
            write_all(descriptor, _encode(asdict(entry)))
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, length)
            raise
    finally:
        os.close(descriptor)


def _check_part_file(folder: Path, part: Part) -> str:
    """The reason why a part file cannot be used ("" if it is intact)."""
    try:
        data = (folder / part.file).read_bytes()
    except FileNotFoundError:
        return f"{part.file} is missing"
    except OSError as error:
        return f"{part.file} could not be read: {error}"
    return check(part, data)


def check(part: Part, data: bytes) -> str:
    """The reason why ``data`` is not the content of ``part`` ("" if it is)."""
    if len(data) != part.bytes:
        return f"{part.file} has {len(data)} bytes, expected {part.bytes}"
    if hashlib.sha256(data).hexdigest() != part.sha256:
        return f"{part.file} does not match the checksum in the journal"
    return ""


def _spread_through_snapshots(
    lines: tuple[Entry | DamagedLine, ...], newest: Mapping[tuple[str, str], int], reasons: Mapping[int, str]
) -> dict[int, str]:
    """Reasons of further lines: those whose units a snapshot holds together with a unit that has a reason."""
    more: dict[int, str] = {}
    for group, last in newest.items():
        members = [
            i for i, line in enumerate(lines) if isinstance(line, Entry) and group in line.tables() and i <= last
        ]
        if any(i <= last and (i in members or isinstance(lines[i], DamagedLine)) for i in reasons):
            reason = f"the running table {group[1]} includes a damaged unit"
            more |= {index: reason for index in members if index not in reasons and index not in more}
    return more


def find_unusable(folder: Path, lines: tuple[Entry | DamagedLine, ...]) -> Iterator[tuple[int, DroppedUnit]]:
    """Index and reason of every line that must not be used.

    A snapshot is made of all units before it that have its table, whose own rows it replaced. So it is usable only if
    it is intact and every one of them is usable; otherwise all of them are computed again.
    """
    newest = {group: index for index, line in enumerate(lines) if isinstance(line, Entry) for group in line.snapshots()}
    reasons: dict[int, str] = {}
    seen: set[tuple[str, str]] = set()
    for index, line in enumerate(lines):
        if isinstance(line, DamagedLine):
            reasons[index] = "the process stopped while writing this line" if line.torn else "the line is damaged"
            continue
        usable = [part for part in line.parts if index >= newest.get((line.suite, part.table), index)]
        problems = [reason for part in usable if (reason := _check_part_file(folder, part))]
        if (line.suite, line.unit) in seen:
            problems.append("the unit is listed twice in the journal")
        seen.add((line.suite, line.unit))
        if problems:
            reasons[index] = "; ".join(problems)
    while more := _spread_through_snapshots(lines, newest, reasons):
        reasons |= more
    for index in sorted(reasons):
        line = lines[index]
        suite, unit = (line.suite, line.unit) if isinstance(line, Entry) else ("", f"line {line.number}")
        yield index, DroppedUnit(suite, unit, reasons[index])
