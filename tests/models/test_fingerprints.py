"""Files are read once; the sha256 of one is computed where it is asked for."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NoReturn

import pytest

from harness.errors import ModelError
from harness.models import fingerprints
from harness.models.fingerprints import fingerprint_file, fingerprint_folder, verify_fingerprints


def write(folder: Path, content: bytes = b"weights") -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


def test_a_fingerprint_costs_no_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> NoReturn:
        raise AssertionError(f"{path} was hashed")

    monkeypatch.setattr(fingerprints, "file_sha256", refuse)
    path = write(tmp_path)
    held = fingerprint_folder(tmp_path)
    assert [each.path for each in held] == [path]
    os.utime(path, (1, 1))
    verify_fingerprints(held)  # Other times, same content.
    with pytest.raises(AssertionError, match="was hashed"):
        _ = held[0].sha256


def test_its_sha256_is_that_of_the_content_at_loading(tmp_path: Path) -> None:
    path = write(tmp_path)
    held = fingerprint_file(path)
    path.write_bytes(b"weights")
    assert held.sha256 == hashlib.sha256(b"weights").hexdigest()
    path.write_bytes(b"Weights")
    assert held.sha256 == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("gone", [False, True])
def test_no_sha256_is_given_for_a_file_that_has_changed(tmp_path: Path, gone: bool) -> None:
    held = fingerprint_file(write(tmp_path))
    if gone:
        held.path.unlink()
    else:
        write(tmp_path, b"Weights")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        _ = held.sha256
