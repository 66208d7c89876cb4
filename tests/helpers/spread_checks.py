"""Checks whose units are computed by workers in this process, through the same code as on a cluster."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import harness.cluster.run
from harness.check import check
from harness.records import RunSpec
from harness.terminal import Terminal
from tests.helpers.cluster_checks import write_check
from tests.helpers.hosts_here import HostsHere

DECIDED_AT = 0.006
"""A limit that the suite DRAWN decides at an interim look, after several."""
MATRIX = "matrix: {bits: [3, 4, 8]}\n"


class Spread:
    """Checks on workers in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings: dict[str, Any] = {"count": 2}
        self.workers: list[HostsHere] = []
        monkeypatch.setattr(harness.cluster.run, "RayWorkers", self._make)
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: name == "ray" or find(name, *args))

    def _make(self, spec: RunSpec, opener: Any, memory: float) -> HostsHere:
        made = HostsHere(opener, **self.settings)
        made.quiet_label = str  # type: ignore[attr-defined]
        self.workers.append(made)
        return made

    def check(self, folder: Path, suite: str, limit: float, name: str = "spread", matrix: str = "", **how: Any) -> Path:
        self.settings = {"count": 2, **how}
        path = write_check(folder, suite, limit, matrix, "run: {ray: auto, wait: 5}\n")
        self.code = check([path], folder / name, Terminal())
        return folder / name


def check_here(folder: Path, suite: str, limit: float, matrix: str = "") -> tuple[int, Path]:
    return check([write_check(folder, suite, limit, matrix)], folder / "plain", Terminal()), folder / "plain"
