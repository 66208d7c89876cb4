"""An atomic write leaves the old file or the new one, whatever happens in between."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import WriteError
from harness.system.files import write_atomic


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [found.name for found in path.parent.iterdir()] == ["run.json"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_atomic(tmp_path / "a", b"")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_at_any_step_keeps_the_old_file_and_leaves_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "run.json"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"harness.system.files.os.{call}", fail)
    with pytest.raises(WriteError, match=r"run\.json: could not be written: No space left on device"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["run.json"]


def test_the_content_is_on_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def noting(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*given: object) -> object:
            calls.append(name)
            return real(*given)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(f"harness.system.files.os.{name}", noting(name))
    write_atomic(tmp_path / "run.json", b"content")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"mine")
    link = tmp_path / "run.json"
    link.symlink_to(target)
    write_atomic(link, b"new")
    assert target.read_bytes() == b"mine"
    assert not link.is_symlink()
    assert link.read_bytes() == b"new"


def test_a_folder_in_the_way_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(WriteError, match=r"run\.json"):
        write_atomic(tmp_path / "run.json", b"new")


@pytest.mark.parametrize("make", [Path.symlink_to, Path.hardlink_to])
def test_a_link_with_the_name_of_the_temporary_file_is_replaced_not_written_through(
    tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"mine")
    make(tmp_path / f".run.json.{os.getpid()}.partial", target)
    write_atomic(tmp_path / "run.json", b"new")
    assert target.read_bytes() == b"mine"
    assert (tmp_path / "run.json").read_bytes() == b"new"
    assert not (tmp_path / "run.json").is_symlink()
