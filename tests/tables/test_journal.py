"""The journal line by line: what each line reads as, which lines must not be used and why."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import TableError
from harness.tables import journal
from harness.tables.journal import DamagedLine, DroppedUnit, Entry, JournalContent, Part


def part(folder: Path, number: int, table: str = "t", snapshot: bool = False) -> Part:
    """A part whose file exists."""
    data, file = f"rows of {number}".encode(), f"core/{number}.{table}.parquet"
    (folder / "core").mkdir(exist_ok=True)
    (folder / file).write_bytes(data)
    return Part(table, file, 3, len(data), hashlib.sha256(data).hexdigest(), snapshot)


def entries(folder: Path, count: int, snapshots: int = 0) -> tuple[Entry, ...]:
    """Units of which the first ``snapshots`` have a running table too; only the newest of its files is there."""
    made = []
    for number in range(1, count + 1):
        parts = [part(folder, number)]
        if number <= snapshots:
            parts.append(part(folder, number, "s", snapshot=True))
            if number < snapshots:
                (folder / parts[-1].file).unlink()
        made.append(Entry("core", f"u/{number}", tuple(parts)))
    return tuple(made)


def unusable(folder: Path) -> list[tuple[int, str, str]]:
    found = journal.find_unusable(folder, journal.read(folder).lines)
    return [(index, dropped.unit, dropped.reason) for index, dropped in found]


def test_what_is_written_is_read_again_in_its_order(tmp_path: Path) -> None:
    first, second, third = entries(tmp_path, 3)
    journal.rewrite(tmp_path, "key", (first, second))
    journal.append(tmp_path, third)
    assert journal.read(tmp_path) == JournalContent("key", (first, second, third))
    assert unusable(tmp_path) == []


def test_a_journal_without_a_whole_first_line_holds_nothing(tmp_path: Path) -> None:
    nothing = JournalContent(None, ())
    assert journal.read(tmp_path) == nothing
    path = tmp_path / journal.NAME
    journal.rewrite(tmp_path, "key", entries(tmp_path, 1))
    whole = path.read_bytes()
    header = whole.splitlines(keepends=True)[0]
    damaged = (
        b"", header[:-1], header[1:] + whole[len(header) :], whole[len(header) :],
        whole.replace(b'"format":1', b'"format":2'),
    )  # fmt: skip
    for data in damaged:
        path.write_bytes(data)
        assert journal.read(tmp_path) == nothing, data
    path.write_bytes(header)
    assert journal.read(tmp_path) == JournalContent("key", ())


@pytest.mark.parametrize("which", [2, 3, 4])
@pytest.mark.parametrize("cut", [1, 20])
def test_only_a_last_line_is_torn_and_lines_are_counted_from_one(tmp_path: Path, which: int, cut: int) -> None:
    """Lines 2, 3 and 4 hold units; the first holds the data key."""
    units = entries(tmp_path, 3)
    journal.rewrite(tmp_path, "key", units)
    lines = (tmp_path / journal.NAME).read_bytes().splitlines(keepends=True)
    end = b"" if which == 4 else b"\n"
    lines[which - 1] = lines[which - 1][: -1 - cut] + end
    (tmp_path / journal.NAME).write_bytes(b"".join(lines))
    wanted: list[Entry | DamagedLine] = list(units)
    wanted[which - 2] = DamagedLine(which, torn=which == 4)
    assert journal.read(tmp_path) == JournalContent("key", tuple(wanted))
    reason = "the process stopped while writing this line" if which == 4 else "the line is damaged"
    assert unusable(tmp_path) == [(which - 2, f"line {which}", reason)]


def test_a_line_of_the_same_content_in_other_bytes_is_damaged(tmp_path: Path) -> None:
    """Keys in another order, spaces, letters beyond ASCII as they are: each with the checksum of its own bytes."""
    (unit,) = entries(tmp_path, 1)
    journal.rewrite(tmp_path, "key", (replace(unit, unit="ü"),))
    path = tmp_path / journal.NAME
    header, line = path.read_bytes().splitlines(keepends=True)
    value = json.loads(line)["entry"]
    sound: dict[str, Any] = {"sort_keys": True, "ensure_ascii": True, "separators": (",", ":")}
    others: tuple[dict[str, Any], ...] = (
        {"sort_keys": False}, {"ensure_ascii": False}, {"separators": (", ", ": ")},
    )  # fmt: skip
    for style, damaged in (({}, False), *((other, True) for other in others)):
        body = json.dumps(dict(reversed(value.items())), **(sound | style))
        path.write_bytes(header + f'{{"crc":"{zlib.crc32(body.encode()):08x}","entry":{body}}}\n'.encode())
        assert isinstance(journal.read(tmp_path).lines[0], DamagedLine) is damaged, style


def test_a_last_line_without_its_end_is_torn(tmp_path: Path) -> None:
    journal.rewrite(tmp_path, "key", entries(tmp_path, 2))
    path = tmp_path / journal.NAME
    path.write_bytes(path.read_bytes()[:-1])
    assert journal.read(tmp_path).lines[1] == DamagedLine(3, torn=True)


def test_a_name_is_as_long_as_it_may_be(tmp_path: Path) -> None:
    (unit,) = entries(tmp_path, 1)
    fits = replace(unit, unit="9" * 1000)
    journal.rewrite(tmp_path, "key", (fits, replace(unit, unit="9" * 1001), replace(unit, suite="9" * 1001)))
    assert journal.read(tmp_path).lines == (fits, DamagedLine(3, torn=False), DamagedLine(4, torn=True))


@pytest.mark.parametrize(
    ("name", "whether"),
    [
        ("core/1.t.parquet", True), (f"core/{'9' * 18}.t.parquet", True), (f"core/{'9' * 19}.t.parquet", False),
        ("core/1.t.parquet\n", False), (".core/1.t.parquet", False), ("core/.t.parquet", False),
        ("core/x/1.t.parquet", False), ("1.t.parquet", False), (None, False), (b"core/1.t.parquet", False),
    ],
)  # fmt: skip
def test_only_names_that_the_store_gives_are_part_files(name: object, whether: bool) -> None:
    assert journal.is_part_file(name) is whether


@pytest.mark.parametrize("field", ["table", "file", "rows", "bytes", "sha256", "snapshot"])
def test_each_value_of_a_part_has_its_type(tmp_path: Path, field: str) -> None:
    (unit,) = entries(tmp_path, 1)
    wrong: dict[str, Any] = {field: 1.5}
    odd = replace(unit.parts[0], **wrong)
    journal.rewrite(tmp_path, "key", (replace(unit, parts=(*unit.parts, odd)), unit))
    assert journal.read(tmp_path).lines == (DamagedLine(2, torn=False), unit)


def test_a_part_is_its_bytes_and_nothing_else(tmp_path: Path) -> None:
    whole = part(tmp_path, 1)
    data = (tmp_path / whole.file).read_bytes()
    assert journal.check(whole, data) == ""
    assert journal.check(whole, data[:-1]) == f"core/1.t.parquet has {len(data) - 1} bytes, expected {len(data)}"
    assert journal.check(whole, data + b"!") == f"core/1.t.parquet has {len(data) + 1} bytes, expected {len(data)}"
    other = b"R" + data[1:]
    assert journal.check(whole, other) == "core/1.t.parquet does not match the checksum in the journal"


def test_every_problem_of_a_unit_is_named(tmp_path: Path) -> None:
    first, second = entries(tmp_path, 2)
    (tmp_path / first.parts[0].file).unlink()
    (tmp_path / second.parts[0].file).unlink()
    (tmp_path / second.parts[0].file).mkdir()
    journal.rewrite(tmp_path, "key", (first, second, first))
    found = unusable(tmp_path)
    assert [(index, unit) for index, unit, _ in found] == [(0, "u/1"), (1, "u/2"), (2, "u/1")]
    assert found[0][2] == "core/1.t.parquet is missing"
    assert found[1][2].startswith("core/2.t.parquet could not be read: ")
    assert found[2][2] == "core/1.t.parquet is missing; the unit is listed twice in the journal"


def test_a_unit_of_another_suite_may_have_the_same_name(tmp_path: Path) -> None:
    first, second = entries(tmp_path, 2)
    journal.rewrite(tmp_path, "key", (first, replace(second, suite="other", unit="u/1")))
    assert unusable(tmp_path) == []


RUNNING = "the running table s includes a damaged unit"


class TestRunningTables:
    """Of a running table only the newest file is read; it sums every unit that has one, up to it."""

    def test_older_files_are_not_missed(self, tmp_path: Path) -> None:
        journal.rewrite(tmp_path, "key", entries(tmp_path, 3, snapshots=3))
        assert unusable(tmp_path) == []

    def test_a_lost_newest_file_takes_all_units_that_it_sums(self, tmp_path: Path) -> None:
        units = entries(tmp_path, 4, snapshots=3)
        (tmp_path / units[2].parts[1].file).unlink()
        journal.rewrite(tmp_path, "key", units)
        assert unusable(tmp_path) == [
            (0, "u/1", RUNNING), (1, "u/2", RUNNING), (2, "u/3", "core/3.s.parquet is missing"),
        ]  # fmt: skip

    def test_a_damaged_unit_takes_those_that_are_summed_with_it(self, tmp_path: Path) -> None:
        units = entries(tmp_path, 4, snapshots=3)
        (tmp_path / units[0].parts[0].file).unlink()
        journal.rewrite(tmp_path, "key", units)
        assert unusable(tmp_path) == [
            (0, "u/1", "core/1.t.parquet is missing"), (1, "u/2", RUNNING), (2, "u/3", RUNNING),
        ]  # fmt: skip

    @pytest.mark.parametrize("which", [1, 2, 3])
    def test_a_damaged_line_may_have_been_summed_only_before_the_newest_file(self, tmp_path: Path, which: int) -> None:
        """Units 1 and 3 are summed; a damaged line after them was not."""
        first, second, third, fourth = entries(tmp_path, 4, snapshots=3)
        order = {
            1: (second, first, third, fourth),
            2: (first, second, third, fourth),
            3: (first, third, second, fourth),
        }
        lines = [replace(unit, parts=unit.parts[:1]) if unit is second else unit for unit in order[which]]
        journal.rewrite(tmp_path, "key", tuple(lines))
        raw = (tmp_path / journal.NAME).read_bytes().splitlines(keepends=True)
        raw[which] = b"damaged\n"
        (tmp_path / journal.NAME).write_bytes(b"".join(raw))
        units = [unit for _, unit, reason in unusable(tmp_path) if reason == RUNNING]
        assert units == ([] if which == 3 else ["u/1", "u/3"])

    def test_a_unit_that_is_in_no_sum_takes_nothing_with_it(self, tmp_path: Path) -> None:
        units = entries(tmp_path, 4, snapshots=3)
        alone = replace(units[1], parts=units[1].parts[:1])
        journal.rewrite(tmp_path, "key", (units[0], alone, units[2], units[3]))
        (tmp_path / alone.parts[0].file).unlink()
        (tmp_path / units[3].parts[0].file).unlink()
        assert [unit for _, unit, _ in unusable(tmp_path)] == ["u/2", "u/4"]

    def test_damage_goes_from_one_running_table_to_the_next(self, tmp_path: Path) -> None:
        """The first two units are summed in s, the last two in r: a damaged first takes all three."""
        first, second, third = entries(tmp_path, 3)
        s1, s2, r2, r3 = (
            part(tmp_path, number, table, snapshot=True)
            for number, table in ((1, "s"), (2, "s"), (2, "r"), (3, "r"))
        )  # fmt: skip
        units = (
            replace(first, parts=(*first.parts, s1)), replace(second, parts=(*second.parts, s2, r2)),
            replace(third, parts=(*third.parts, r3)),
        )  # fmt: skip
        journal.rewrite(tmp_path, "key", units)
        (tmp_path / first.parts[0].file).unlink()
        assert unusable(tmp_path) == [
            (0, "u/1", "core/1.t.parquet is missing"), (1, "u/2", RUNNING),
            (2, "u/3", "the running table r includes a damaged unit"),
        ]  # fmt: skip


def test_the_suite_of_a_dropped_unit_is_named(tmp_path: Path) -> None:
    (unit,) = entries(tmp_path, 1)
    (tmp_path / unit.parts[0].file).unlink()
    found = list(journal.find_unusable(tmp_path, (unit, DamagedLine(3, torn=True))))
    assert found[0] == (0, DroppedUnit("core", "u/1", "core/1.t.parquet is missing"))
    assert found[1][1].suite == ""


@pytest.mark.parametrize("operation", ["fsync", "write"])
def test_a_line_that_cannot_be_written_whole_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    first, second = entries(tmp_path, 2)
    journal.rewrite(tmp_path, "key", (first,))
    before = (tmp_path / journal.NAME).read_bytes()
    real: Callable[..., Any] = os.write

    def refuse(descriptor: int, data: bytes = b"") -> int:
        if data:
            real(descriptor, bytes(data)[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, refuse)
        with pytest.raises(OSError, match="No space left"):
            journal.append(tmp_path, second)
    assert (tmp_path / journal.NAME).read_bytes() == before
    journal.append(tmp_path, second)
    assert journal.read(tmp_path).lines == (first, second)


def test_a_journal_that_is_no_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / journal.NAME).mkdir()
    with pytest.raises(TableError, match=r"journal\.jsonl: could not be read: Is a directory"):
        journal.read(tmp_path)
    (tmp_path / journal.NAME).rmdir()
    journal.rewrite(tmp_path, "key", ())
    (tmp_path / journal.NAME).rename(tmp_path / "other")
    (tmp_path / journal.NAME).symlink_to(tmp_path / "other")
    with pytest.raises(TableError, match=r"journal\.jsonl: could not be read"):
        journal.read(tmp_path)
    with pytest.raises(OSError, match="symbolic links"):
        journal.append(tmp_path, Entry("core", "u/1", ()))
