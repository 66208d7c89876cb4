"""Ray is loaded where it is asked for, and its absence is told with the command that installs it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest

from harness.cluster.ray_workers import import_ray
from harness.errors import MissingDependencyError


def test_the_room_is_imported_without_ray() -> None:
    code = "import sys, harness.cluster.ray_workers, harness.cluster.board; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_missing_library_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    hidden: Any = lambda name, *more: None if name == "ray" else found(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    with pytest.raises(MissingDependencyError, match=r'pip install "lm-shipcheck\[ray\]"'):
        import_ray()
