"""A saved folder is there as a whole or not at all."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from harness.artifacts.saving import discard, list_files, save_folder
from harness.errors import BackendError, WriteError


def two_files(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "one.json").write_text("1")
    (folder / "two.safetensors").write_bytes(b"22")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_holds_what_was_written_and_its_files_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "artifact"
    save_folder(folder, two_files)
    assert names(tmp_path / "run") == ["artifact"]
    found = {file.name: (file.bytes, file.sha256) for file in list_files(folder)}
    assert found == {
        "a/one.json": (1, hashlib.sha256(b"1").hexdigest()),
        "two.safetensors": (2, hashlib.sha256(b"22").hexdigest()),
    }


def test_what_an_earlier_run_left_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "old.safetensors").write_bytes(b"old")
    (tmp_path / ".artifact.partial").mkdir()
    (tmp_path / ".artifact.partial" / "half").write_bytes(b"h")
    save_folder(folder, two_files)
    assert names(folder) == ["a", "two.safetensors"]
    assert names(tmp_path) == ["artifact"]


@pytest.mark.parametrize(
    ("raised", "wanted", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), WriteError, "No space left on device"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), WriteError, "os error 28"),
        (NotImplementedError("cannot be serialized"), BackendError, "NotImplementedError: cannot be serialized"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_a_folder_half_written_never_counts(
    tmp_path: Path, raised: BaseException, wanted: type[BaseException], words: str
) -> None:
    folder = tmp_path / "artifact"
    save_folder(folder, two_files)

    def fails(partial: Path) -> None:
        two_files(partial)
        raise raised

    with pytest.raises(wanted) as caught:
        save_folder(folder, fails)
    assert words in str(caught.value)
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(WriteError, match=r"run/artifact: the artifact could not be written: .*measurements are kept"):
        save_folder(tmp_path / "run" / "artifact", two_files)


def test_discarding_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    discard(tmp_path / "link")
    discard(tmp_path / "never there")
    assert names(tmp_path) == ["kept"]
    assert (tmp_path / "kept" / "file").exists()
