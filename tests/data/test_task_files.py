"""Task files of strangers: what cannot be read is listed with the reason, and no other task is lost by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.data.task_files import files_sha256, read_task_files


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 200_000, "maximum recursion depth"),
        (b'{"task":' * 100_000, "maximum recursion depth"),
        (b"- a\n", "expected a mapping"),
        (b"\xff\xfe\x00", ""),
        (b"task: [", "while parsing"),
    ],
    ids=["brackets", "braces", "list", "bytes", "open"],
)
def test_a_file_that_cannot_be_read_costs_no_other_task(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("task: good\n")
    (tmp_path / "odd.yaml").write_bytes(content)
    files = read_task_files([tmp_path])
    assert files.find("good") == tmp_path / "good.yaml"
    assert list(files.unreadable) == [tmp_path / "odd.yaml"]
    assert reason in files.unreadable[tmp_path / "odd.yaml"]
    before = files_sha256([tmp_path])
    (tmp_path / "odd.yaml").write_bytes(content + b" ")
    assert files_sha256([tmp_path]) != before
