"""A folder that one process holds: a real one, new or marked as the program's own, locked until it is released."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from harness.errors import WriteError

_HOLDER = re.compile(rb"(\d{1,20}\n){0,2}")
"""The whole content of a lock file that this program wrote: the process that holds it, and how often it was held."""


def hold(folder: Path, lock: str, marks: Sequence[str] = ()) -> int:
    """Create ``folder`` if it is missing and lock it for this process; closing the returned descriptor releases it.

    The folder must be new or empty, or contain the file ``lock`` or one of the relative paths ``marks``: whatever else
    stands there belongs to somebody else, who would lose it. No link is followed, neither at ``folder`` nor at
    ``lock``. The lock (flock) ends with the process. Raises WriteError with the folder and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():
            raise WriteError(f"{folder}: found a link, expected a folder; remove the link or choose another folder")
        inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _check_own(folder, os.listdir(inside), (lock, *marks))
            descriptor = _open_lock(folder, lock, inside)
        finally:
            os.close(inside)
        try:
            _take(folder, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise WriteError(f"{folder}: could not be opened for writing: {_explain(folder, error)}") from error
    return descriptor


def _check_own(folder: Path, names: Sequence[str], marks: Sequence[str]) -> None:
    """Raise WriteError where the folder contains something and none of its own marks."""
    if names and not any(os.path.lexists(folder / mark) for mark in marks):
        raise WriteError(
            f"{folder}: found {sorted(names)[0]!r} and nothing written by this program, expected a new or empty "
            "folder; move its content away or choose another folder"
        )


def _open_lock(folder: Path, lock: str, inside: int) -> int:
    """The descriptor of the lock file. Raises WriteError where something else has its name."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(lock, flags, 0o644, dir_fd=inside)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR}:
            raise _foreign_file_error(folder / lock) from error
        raise
    state = os.fstat(descriptor)
    if stat.S_ISREG(state.st_mode) and state.st_nlink == 1 and _HOLDER.fullmatch(os.pread(descriptor, 64, 0)):
        return descriptor
    os.close(descriptor)
    raise _foreign_file_error(folder / lock)


def _foreign_file_error(path: Path) -> WriteError:
    return WriteError(f"{path}: found something that this program did not write, expected its lock file; remove it")


def _take(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").partition("\n")[0] or "unknown"
        raise WriteError(
            f"{folder}: in use by process {holder}; wait until it ends, or choose another output folder"
        ) from error
    held = count_holds(os.pread(descriptor, 64, 0)) + 1
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n{held}\n".encode(), 0)


def count_holds(content: bytes) -> int:
    """How often the folder of a lock file was held, this time included; 0 by a version that did not count."""
    lines = content.split()
    return int(lines[1]) if len(lines) > 1 else 0


def _explain(folder: Path, error: OSError) -> str:
    """The system's reason, and which path it is about where that is not the folder itself."""
    reason = error.strerror or str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        in_place = next((each for each in (folder, *folder.parents) if each.exists() and not each.is_dir()), folder)
        return f"{in_place} is a file, expected a folder; remove it or choose another folder"
    return reason
