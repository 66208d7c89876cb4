"""The journal of a folder of tables: one line a unit, each with its own checksum.

The first line names the data key; every other line says which part files one unit left. A unit exists only
once its line is on disk, so a process that dies leaves whole units and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import TableError

FORMAT = 1
NAME = "journal.jsonl"


@dataclass(frozen=True)
class Part:
    """One file of rows. A snapshot part replaces the earlier snapshots of its table."""

    table: str
    file: str
    rows: int
    bytes: int
    sha256: str
    snapshot: bool


@dataclass(frozen=True)
class Entry:
    """What one unit of one suite left behind."""

    suite: str
    unit: str
    parts: tuple[Part, ...]

    def snapshots(self) -> frozenset[tuple[str, str]]:
        """(suite, table) of every snapshot in it."""
        return frozenset((self.suite, part.table) for part in self.parts if part.snapshot)


@dataclass(frozen=True)
class Damaged:
    """A line that is not what was written; ``number`` counts from 1."""

    number: int
    torn: bool


@dataclass(frozen=True)
class Dropped:
    """A unit that counted as done but whose rows cannot be trusted, so that it is computed again."""

    suite: str
    unit: str
    reason: str


@dataclass(frozen=True)
class Content:
    """A journal as read: the data key (None: no readable header) and its lines in file order."""

    data_key: str | None
    lines: tuple[Entry | Damaged, ...]


def _encode(value: dict[str, Any]) -> bytes:
    body = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return f'{{"crc":"{zlib.crc32(body.encode()):08x}","entry":{body}}}\n'.encode()


def _decode(line: bytes) -> dict[str, Any] | None:
    """The entry, or None where the bytes are not exactly what ``_encode`` wrote."""
    try:
        value = json.loads(line)["entry"]
        return value if isinstance(value, dict) and _encode(value) == line else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _entry(value: dict[str, Any]) -> Entry | None:
    try:
        return Entry(value["suite"], value["unit"], tuple(Part(**part) for part in value["parts"]))
    except (KeyError, TypeError):
        return None


def read(folder: Path) -> Content:
    """The journal of ``folder``; a missing one reads as empty. Raises TableError where the disk refuses."""
    try:
        data = (folder / NAME).read_bytes()
    except FileNotFoundError:
        return Content(None, ())
    except OSError as error:
        raise TableError(f"{folder / NAME}: could not be read: {error}") from error
    raw = data.splitlines(keepends=True)
    header = _decode(raw[0]) if raw else None
    if header is None or header.get("format") != FORMAT or not isinstance(header.get("data_key"), str):
        return Content(None, ())
    lines: list[Entry | Damaged] = []
    for number, line in enumerate(raw[1:], start=2):
        value = _decode(line)
        entry = _entry(value) if value is not None else None
        lines.append(entry or Damaged(number, torn=number == len(raw)))
    return Content(header["data_key"], tuple(lines))


def put_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, all of it or none. The name lasts once ``sync_folder`` ran on its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rewrite(folder: Path, data_key: str, entries: tuple[Entry, ...]) -> None:
    """Replace the journal by one that holds exactly these entries."""
    lines = [
        _encode({"format": FORMAT, "data_key": data_key}),
        *(_encode(asdict(entry)) for entry in entries),
    ]
    put_file(folder / NAME, b"".join(lines))
    sync_folder(folder)


def append(folder: Path, entry: Entry) -> None:
    """Add one line, durably. Where something interrupts it, a partial line is taken back first."""
    descriptor = os.open(folder / NAME, os.O_WRONLY | os.O_APPEND)
    try:
        length = os.fstat(descriptor).st_size
        try:
            _write_all(descriptor, _encode(asdict(entry)))
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, length)
            raise
    finally:
        os.close(descriptor)


def _damage(folder: Path, part: Part) -> str:
    """Why a part cannot be used ("" if it is exactly what was written)."""
    try:
        data = (folder / part.file).read_bytes()
    except FileNotFoundError:
        return f"{part.file} is missing"
    except OSError as error:
        return f"{part.file} could not be read: {error}"
    return check(part, data)


def check(part: Part, data: bytes) -> str:
    """Why ``data`` is not the content of ``part`` ("" if it is)."""
    if len(data) != part.bytes:
        return f"{part.file} has {len(data)} bytes, wanted {part.bytes}"
    if hashlib.sha256(data).hexdigest() != part.sha256:
        return f"{part.file} has another checksum than the journal says"
    return ""


def unusable(folder: Path, lines: tuple[Entry | Damaged, ...]) -> Iterator[tuple[int, Dropped]]:
    """Index and reason of every line that must not be used.

    A snapshot holds the sum over all units before it, so it is usable only if it is intact and every unit
    that went into it still counts. Otherwise all units that took part in it are computed again.
    """
    newest = {group: index for index, line in enumerate(lines) if isinstance(line, Entry) for group in line.snapshots()}
    reasons: dict[int, str] = {}
    seen: set[tuple[str, str]] = set()
    for index, line in enumerate(lines):
        if isinstance(line, Damaged):
            reasons[index] = "the process was stopped while it wrote the line" if line.torn else "the line is damaged"
            continue
        usable = [p for p in line.parts if not p.snapshot or newest[line.suite, p.table] == index]
        found = [reason for part in usable if (reason := _damage(folder, part))]
        if (line.suite, line.unit) in seen:
            found.append("the unit stands in the journal twice")
        seen.add((line.suite, line.unit))
        if found:
            reasons[index] = "; ".join(found)
    spread = True
    while spread:
        spread = False
        for group, last in newest.items():
            members = [i for i, line in enumerate(lines) if isinstance(line, Entry) and group in line.snapshots()]
            lost = [i for i in reasons if i <= last and (i in members or isinstance(lines[i], Damaged))]
            for index in members if lost else ():
                if index not in reasons:
                    reasons[index], spread = (
                        f"the running table {group[1]} includes a unit that is damaged",
                        True,
                    )
    for index in sorted(reasons):
        line = lines[index]
        suite, unit = (line.suite, line.unit) if isinstance(line, Entry) else ("", f"line {line.number}")
        yield index, Dropped(suite, unit, reasons[index])
