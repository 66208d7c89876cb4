"""Shipped files are found in a source tree and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.system import resources


def make(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("description: x\n")
    return folder


def test_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "harness")
    suites = make(tmp_path / "suites", "b.yaml", "a.yaml", "notes.txt")
    (suites / "tasks").mkdir()
    assert resources.folder("suites") == suites
    assert resources.bundled_names("suites") == ("a", "b")
    assert resources.bundled_file("suites", "a") == suites / "a.yaml"


def test_a_wheel_carries_them_inside_and_ignores_what_lies_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """site-packages may hold a folder called suites that belongs to somebody else."""
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "harness")
    make(tmp_path / "suites", "foreign.yaml")
    inside = make(tmp_path / "harness" / "_shipped" / "suites", "core.yaml")
    assert resources.folder("suites") == inside
    assert resources.bundled_names("suites") == ("core",)


def test_a_broken_installation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "harness")
    with pytest.raises(HarnessError, match="install the harness again"):
        resources.folder("gates")


def test_what_ships() -> None:
    assert {"core", "smoke", "standard"} <= set(resources.bundled_names("suites"))
    assert {"ship", "smoke", "strict"} <= set(resources.bundled_names("gates"))
