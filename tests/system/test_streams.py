"""Output goes where it can, and what cannot be written changes nothing else."""

from __future__ import annotations

import io
from pathlib import Path

import click
import pytest

from harness.system.streams import EnduringStream


def test_ordinary_output_is_passed_on() -> None:
    out = io.StringIO()
    stream = EnduringStream(out)
    assert stream.write("größe") == 5
    stream.flush()
    assert (out.getvalue(), stream.lost) == ("größe", None)


def test_a_full_device_is_remembered_and_further_output_dropped() -> None:
    with open("/dev/full", "w") as full:
        stream = EnduringStream(full)
        for _ in range(3):
            stream.write("x" * 10_000)
            stream.flush()
        assert stream.lost is not None
        assert stream.lost.strerror == "No space left on device"


def test_a_stream_that_is_not_there_drops_everything() -> None:
    stream = EnduringStream(None)
    assert stream.write("x") == 1
    stream.flush()
    assert stream.lost is None


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_character_can_be_written(tmp_path: Path, encoding: str) -> None:
    with (tmp_path / "out").open("w", encoding=encoding) as file:
        stream = EnduringStream(file)
        click.echo("✓ größe 模型 \ud800", file=stream)  # type: ignore[arg-type]
        stream.flush()
    said = (tmp_path / "out").read_text(encoding)
    assert said.startswith("✓" if encoding == "utf-8" else r"\u2713")
    assert said.endswith("\\ud800\n")


def test_bytes_are_refused_before_and_after_a_failure() -> None:
    stream = EnduringStream(io.StringIO())
    for lost in (None, OSError(28, "No space left on device")):
        stream.lost = lost
        with pytest.raises(TypeError):
            stream.write(b"x")  # type: ignore[arg-type]
