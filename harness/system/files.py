"""Writing a file so that a reader finds either all of the old content or all of the new."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from harness.errors import WriteError


def write_atomic(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, making its folder where needed.

    The content goes to a temporary file in the same folder, is flushed to the disk, and takes the place
    of what was there in one step; then the folder is flushed too. Killed, refused or out of space at any
    point, the old file is untouched. Raises WriteError naming the file and what the system said.
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
    # 0o666 lets the user's umask decide, as an ordinary open does; a temporary-file helper would leave 0o600,
    # which the next step of a CI job could not read.
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
