"""What libraries print goes to the log of the run folders: nothing reaches standard error, and nothing is lost."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from harness.system.library_log import LOG, keep_library_noise


def test_what_is_written_goes_to_every_folder_and_not_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    with keep_library_noise(folders):
        print("Failed to load _C.so", file=sys.stderr)
        print("deprecated ü", file=sys.stderr)
        handler = logging.StreamHandler()
        handler.emit(logging.makeLogRecord({"msg": "from a logger"}))
    for folder in folders:
        text = (folder / LOG).read_text(encoding="utf-8")
        assert all(each in text for each in ("Failed to load _C.so", "deprecated ü", "from a logger"))
    assert err.getvalue() == ""
    assert sys.stderr is err


def test_a_logger_that_keeps_the_stream_reaches_standard_error_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    with keep_library_noise([tmp_path]):
        handler = logging.StreamHandler()
    handler.emit(logging.makeLogRecord({"msg": "later"}))
    assert err.getvalue() == "later\n"
    assert not (tmp_path / LOG).exists()


def test_a_log_of_an_earlier_run_goes_and_a_folder_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("old")
    with keep_library_noise([tmp_path, tmp_path / "missing"]):
        assert not (tmp_path / LOG).exists()
        print("new", file=sys.stderr)
    assert (tmp_path / LOG).read_text() == "new\n"


def test_an_error_passes_and_standard_error_is_back(tmp_path: Path) -> None:
    before = sys.stderr
    with pytest.raises(ValueError, match="x"), keep_library_noise([tmp_path]):
        raise ValueError("x")
    assert sys.stderr is before
