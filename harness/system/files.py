"""Atomic file writes: a reader sees either all of the old content or all of the new."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from harness.errors import WriteError


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, creating its folder if needed.

    The content is written to a temporary file in the same folder, flushed to disk, and renamed over ``path``; then the
    folder is flushed too. If the process is killed or a step fails at any point, the old file is untouched. Raises
    WriteError with the file and the system's error message.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_through(temporary, content)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise WriteError(f"{path}: could not be written: {error.strerror or error}") from error


def _write_through(path: Path, content: bytes) -> None:
    # 0o666 lets the user's umask decide, as an ordinary open does; tempfile would use 0o600, which the next step of a
    # CI job could not read.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(path, flags, 0o666), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder; its rename is durable without
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
