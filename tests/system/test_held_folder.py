"""A held folder belongs to the program and to one process; what belongs to somebody else is left as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import WriteError
from harness.system.held_folder import count_holds, hold

LOCK = "lock"


def test_a_new_an_empty_and_an_own_folder_can_be_held_one_after_another(tmp_path: Path) -> None:
    for folder in (tmp_path / "new" / "deep", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        os.close(hold(folder, LOCK))
        (folder / "result").write_text("mine")
        os.close(hold(folder, LOCK))
        assert (folder / LOCK).read_text() == f"{os.getpid()}\n2\n"
        assert (folder / "result").read_text() == "mine"


def test_a_folder_of_an_earlier_version_is_known_by_its_marks(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    with pytest.raises(WriteError, match="found 'tables' and nothing written by this program"):
        hold(tmp_path, LOCK, ("tables/journal.jsonl",))
    (tmp_path / "tables" / "journal.jsonl").write_text("")
    os.close(hold(tmp_path, LOCK, ("tables/journal.jsonl",)))


def test_the_second_process_is_refused_with_the_holder_until_the_first_lets_go(tmp_path: Path) -> None:
    first = hold(tmp_path / "run", LOCK)
    with pytest.raises(WriteError, match=rf"run: in use by process {os.getpid()}; wait"):
        hold(tmp_path / "run", LOCK)
    os.close(first)
    os.close(hold(tmp_path / "run", LOCK))


def test_a_folder_of_somebody_else_is_refused_and_nothing_in_it_is_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(WriteError, match=r"found 'thesis\.tex' and nothing written by this program"):
        hold(tmp_path, LOCK)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WriteError, match="run: found a link, expected a folder"):
        hold(tmp_path / "run", LOCK)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "hard link", "file", "folder", "pipe"])
def test_what_has_the_name_of_the_lock_is_not_overwritten(tmp_path: Path, kind: str) -> None:
    precious, folder = tmp_path / "precious", tmp_path / "run"
    folder.mkdir()
    precious.write_text("years of work" if kind != "hard link" else "12345\n")
    before = precious.read_text()
    lock = folder / LOCK
    make: dict[str, Callable[[], object]] = {
        "link": lambda: lock.symlink_to(precious),
        "hard link": lambda: os.link(precious, lock),
        "file": lambda: lock.write_text("years of work"),
        "folder": lock.mkdir,
        "pipe": lambda: os.mkfifo(lock),
    }
    make[kind]()
    with pytest.raises(WriteError, match="lock: found something that this program did not write"):
        hold(folder, LOCK)
    assert precious.read_text() == before
    assert kind != "file" or lock.read_text() == "years of work"


def test_a_file_in_place_of_the_folder_or_above_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(WriteError, match=rf"{folder}: .*{tmp_path}/file is a file, expected a folder"):
            hold(folder, LOCK)


def test_a_name_too_long_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="could not be opened for writing: File name too long"):
        hold(tmp_path / ("x" * 300), LOCK)


def test_every_hold_is_counted_and_files_of_an_earlier_version_count_from_one(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    for expected in (1, 2, 3):
        os.close(hold(tmp_path / "run", ".lock"))
        assert count_holds(lock.read_bytes()) == expected
    lock.write_bytes(b"123\n")
    os.close(hold(tmp_path / "run", ".lock"))
    assert count_holds(lock.read_bytes()) == 1
