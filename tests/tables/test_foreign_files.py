"""A store writes and deletes its own files only, whatever stands in or near its folder."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.errors import TableError
from harness.tables.store import Store, StoreReader


def commit(folder: Path, unit: str) -> None:
    with Store(folder, "key") as store:
        store.sink("core").commit(unit, {"t": pd.DataFrame({"x": [1]})})


def test_foreign_files_below_the_folder_stay(tmp_path: Path) -> None:
    commit(tmp_path / "tables", "u/1")
    kept = [tmp_path / "tables" / name for name in ("mine/data.parquet", "core/notes.parquet", "core/x.parquet.tmp")]
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("years of work")
    commit(tmp_path / "tables", "u/2")
    with Store(tmp_path / "tables", "other key"):
        assert [path.read_text() for path in kept] == ["years of work"] * 3


def test_a_linked_folder_of_a_suite_is_neither_cleaned_nor_written_into(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    precious = tmp_path / "elsewhere" / "7.tokens.parquet"
    precious.write_text("years of work")
    Store(tmp_path / "tables", "key").close()
    (tmp_path / "tables" / "core").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TableError, match="found a link, expected a folder"):
        commit(tmp_path / "tables", "u/1")
    assert [path.read_text() for path in (tmp_path / "elsewhere").iterdir()] == ["years of work"]


def test_a_foreign_folder_of_the_name_of_the_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tables" / "core").mkdir(parents=True)
    precious = tmp_path / "tables" / "core" / "1.t.parquet"
    precious.write_text("years of work")
    with pytest.raises(TableError, match="tables: found 'core' and nothing written by this program"):
        Store(tmp_path / "tables", "key")
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("name", ["lock", "journal.jsonl.tmp", "core/2.t.parquet.tmp", "journal.jsonl"])
def test_no_link_is_written_through(tmp_path: Path, name: str) -> None:
    commit(tmp_path / "tables", "u/1")
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    (tmp_path / "tables" / name).unlink(missing_ok=True)
    (tmp_path / "tables" / name).symlink_to(precious)
    with contextlib.suppress(TableError):
        commit(tmp_path / "tables", "u/2")
    assert precious.read_text() == "years of work"


def line(entry: Any) -> bytes:
    body = json.dumps(entry, sort_keys=True, separators=(",", ":"))
    return f'{{"crc":"{zlib.crc32(body.encode()):08x}","entry":{body}}}\n'.encode()


def change_part(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry["parts"][0].update({key: value})


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry.update({key: value})


WRONG = {
    "file is a number": change_part("file", 5),
    "file is null": change_part("file", None),
    "file outside": change_part("file", "../precious"),
    "file absolute": change_part("file", "/etc/passwd"),
    "file without a number": change_part("file", "core/t.parquet"),
    "file with a number too long": change_part("file", f"core/{'9' * 200}.t.parquet"),
    "file with NUL": change_part("file", "core/1.t\0.parquet"),
    "bytes is text": change_part("bytes", "12"),
    "rows is true": change_part("rows", True),
    "hash is a list": change_part("sha256", []),
    "table is a list": change_part("table", ["t"]),
    "table is a mapping": change_part("table", {}),
    "snapshot is a list": change_part("snapshot", [1]),
    "part lacks a key": lambda entry: entry["parts"][0].pop("rows"),
    "part is a number": change("parts", [5]),
    "part is text": change("parts", ["core/1.t.parquet"]),
    "parts is text": change("parts", "core"),
    "parts is null": change("parts", None),
    "unit is a number": change("unit", 5),
    "unit is a list": change("unit", ["u"]),
    "unit is very long": change("unit", "9" * 5000),
    "unit is half a character": change("unit", "\ud800"),
    "suite is null": change("suite", None),
    "suite is a mapping": change("suite", {}),
}  # fmt: skip


@pytest.mark.parametrize("how", list(WRONG))
def test_a_line_with_a_valid_checksum_and_wrong_values_is_computed_again(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "tables"
    commit(folder, "u/1")
    commit(folder, "u/2")
    (tmp_path / "precious").write_text("years of work")
    journal = folder / "journal.jsonl"
    header, first, second = journal.read_bytes().splitlines(keepends=True)
    entry = json.loads(first)["entry"]
    WRONG[how](entry)
    journal.write_bytes(header + line(entry) + second)
    with pytest.raises(TableError, match="line 2 is damaged"):
        StoreReader(folder, "key").read("core", "t")
    with Store(folder, "key") as store:
        assert [dropped.unit for dropped in store.dropped] == ["line 2"]
        assert store.units("core") == ("u/2",)
        store.sink("core").commit("u/1", {"t": pd.DataFrame({"x": [1]})})
        read = store.read("core", "t")
        assert read is not None
        assert len(read) == 2
    assert (tmp_path / "precious").read_text() == "years of work"


@pytest.mark.parametrize("header", [{"format": 1}, {"format": 1, "data_key": 5}, {"format": [], "data_key": "key"}, {}])
def test_a_first_line_with_a_valid_checksum_and_wrong_values_clears_the_tables(
    tmp_path: Path, header: dict[str, Any]
) -> None:
    commit(tmp_path, "u/1")
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(line(header) + b"".join(journal.read_bytes().splitlines(keepends=True)[1:]))
    with Store(tmp_path, "key") as store:
        assert "the first line of journal.jsonl is damaged" in store.cleared
        assert store.units("core") == ()


def test_a_snapshot_outside_the_folder_is_never_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    with Store(folder, "key") as store:
        store.sink("core").commit("u/1", {}, {"sums": pd.DataFrame({"x": [1]})})
    journal, (part,) = folder / "journal.jsonl", folder.glob("core/*.parquet")
    os.rename(part, tmp_path / "1.sums.parquet")
    header, first = journal.read_bytes().splitlines(keepends=True)
    entry = json.loads(first)["entry"]
    entry["parts"][0]["file"] = "../1.sums.parquet"
    journal.write_bytes(header + line(entry))
    with Store(folder, "key") as store:
        store.sink("core").commit("u/2", {}, {"sums": pd.DataFrame({"x": [1]})})
    assert (tmp_path / "1.sums.parquet").exists()
