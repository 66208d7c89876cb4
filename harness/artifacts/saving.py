"""Atomic folder writes: a reader finds either the complete folder or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from harness.errors import BackendError, WriteError
from harness.models.fingerprints import file_sha256
from harness.records import ArtifactFile


def save_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder, flush it to disk, and rename it to ``folder`` in one step.

    An artifact of an earlier run is removed first, so that it can never accompany a new verdict. If the process is
    killed or a step fails at any point, no folder exists. Raises WriteError with the system's error message, and
    BackendError with the library's message for any other exception.
    """
    partial = _partial(folder)
    try:
        discard_artifact(folder)
        partial.mkdir(parents=True)
        try:
            _fill(partial, write)
            _flush(partial)
            os.replace(partial, folder)
            _flush_one(folder.parent)
        finally:
            discard(partial)
    except OSError as error:
        raise WriteError(
            f"{folder}: the artifact could not be written: {error.strerror or error}; measurements are kept, and the "
            "same command resumes from there"
        ) from error


def discard_artifact(folder: Path) -> None:
    """Remove the saved folder and any partial one left by a killed process. Raises OSError."""
    discard(folder)
    discard(_partial(folder))


def discard_stale(folder: Path) -> None:
    """Delete what an earlier run saved, so that it cannot be mistaken for the artifact of this verdict.

    Raises WriteError.
    """
    try:
        discard_artifact(folder)
    except OSError as error:
        raise WriteError(f"{folder}: an earlier artifact could not be removed: {error.strerror or error}") from error


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def discard(folder: Path) -> None:
    """Remove a folder with its content, if it exists. Raises OSError."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def list_files(folder: Path) -> tuple[ArtifactFile, ...]:
    """Every file in a folder with its size and hash, by name. Raises WriteError if one cannot be read."""
    try:
        return tuple(
            ArtifactFile(name=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=file_sha256(path))
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        )
    except OSError as error:
        raise WriteError(f"{folder}: the artifact could not be read back: {error.strerror or error}") from error


def _fill(folder: Path, write: Callable[[Path], None]) -> None:
    try:
        write(folder)
    except OSError:
        raise
    except Exception as error:  # A library may raise anything; only its message tells whether the disk failed.
        if "os error" in str(error) or "No space left" in str(error):
            raise OSError(str(error)) from error
        raise BackendError(f"the artifact could not be written: {type(error).__name__}: {error}") from error


def _flush(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _flush_one(path)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
