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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content, path.with_name(f".{path.name}.{os.getpid()}.partial"))
        sync_folder(path.parent)
    except OSError as error:
        raise WriteError(f"{path}: could not be written: {error.strerror or error}") from error


def replace_file(path: Path, content: bytes, temporary: Path) -> None:
    """Write ``content`` to ``temporary``, flush it to disk, and rename it over ``path``; on failure it is removed.

    The name is durable once ``sync_folder`` has run on its folder. Raises OSError.
    """
    try:
        _write_through(temporary, content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_all(descriptor: int, content: bytes) -> None:
    """Write every byte of ``content``, in as many steps as the system needs. Raises OSError."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable. Raises OSError."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder; its rename is durable without
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_through(path: Path, content: bytes) -> None:
    descriptor = _open_new(path)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_new(path: Path) -> int:
    """A new file: what had the name, a link or the rest of a killed process, is removed, never written through."""
    # 0o666 lets the user's umask decide, as an ordinary open does; tempfile would use 0o600, which the next step of a
    # CI job could not read.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, flags, 0o666)
    except FileExistsError:
        os.unlink(path)
        return os.open(path, flags, 0o666)
