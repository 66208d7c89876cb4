"""Reads the entry ``run`` of a variant file: where a check runs."""

from __future__ import annotations

import importlib.util
from typing import Any

from harness.planning.checking import Checker
from harness.planning.checkpoints import DISTRIBUTION
from harness.records import RunSpec


def read_run(check: Checker, value: Any) -> RunSpec | None:
    """Where a check runs, None for this process; None and problems if there are mistakes."""
    if value is None:
        return None
    spec = check.record(RunSpec, value, ("run",))
    if spec is not None and importlib.util.find_spec("ray") is None:
        found, expected = "workers of Ray, which is not installed", "Ray on this machine and on every node"
        check.problem(("run",), found, expected, f'pip install "{DISTRIBUTION}[ray]"')
    return spec
