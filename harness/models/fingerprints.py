"""Fingerprints of model files at loading time, so that a later change of the files is detected."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import xxhash

from harness.errors import ModelError

READ_WHEN_LOADING = frozenset({".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken", ".py"})
"""Suffixes of the files that loading a model or tokenizer may read."""


@dataclass(frozen=True)
class FileFingerprint:
    """State of one file at loading. checksum: XXH3 of its content, 128 bits, which costs less than reading it. stat:
    size, modification and change times in ns, inode."""

    path: Path
    checksum: str
    stat: tuple[int, int, int, int]

    @cached_property
    def sha256(self) -> str:
        """Of the content at loading, computed when it is asked for; raises ModelError if the file has changed since."""
        try:
            found = file_sha256(self.path)
        except OSError as error:
            raise _tell_unreadable(self.path, error) from error
        verify_fingerprints([self])
        return found


def fingerprint_folder(folder: Path) -> tuple[FileFingerprint, ...]:
    """Fingerprints of the files in ``folder`` that loading may read; raises ModelError for an unreadable one."""
    return tuple(
        fingerprint_file(path)
        for path in sorted(folder.iterdir())
        if path.suffix in READ_WHEN_LOADING and path.is_file()
    )


def verify_fingerprints(files: Sequence[FileFingerprint]) -> None:
    """Raise ModelError naming every file whose content no longer matches its fingerprint.

    A file is read again only if its size, times or inode changed.
    """
    changed = []
    for file in files:
        try:
            same = _stat(file.path) == file.stat or _checksum(file.path) == file.checksum
        except OSError:
            same = False
        if not same:
            changed.append(str(file.path))
    if changed:
        raise ModelError(
            f"changed while the run used them: {', '.join(changed)}; the numbers belong to no single model, run again"
        )


def fingerprint_file(path: Path) -> FileFingerprint:
    """Fingerprint of one file; raises ModelError for an unreadable one."""
    try:
        before = _stat(path)  # Before reading: a write during the reading then shows as a changed stat.
        return FileFingerprint(path=path, checksum=_checksum(path), stat=before)
    except OSError as error:
        raise _tell_unreadable(path, error) from error


def _tell_unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{path}: cannot be read: {error.strerror or error}")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def _stat(path: Path) -> tuple[int, int, int, int]:
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
