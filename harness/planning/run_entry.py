"""Reads the entry ``run`` of a variant file: where a check runs."""

from __future__ import annotations

import importlib.util
from typing import Any

from harness.planning.checking import Checker
from harness.planning.checkpoints import DISTRIBUTION
from harness.records import ModelSpec, RunSpec


def read_run(check: Checker, value: Any, reference: ModelSpec | None) -> RunSpec | None:
    """Where a check runs, None for this process; None and problems if there are mistakes."""
    if value is None:
        return None
    spec = check.record(RunSpec, value, ("run",))
    if spec is not None and importlib.util.find_spec("ray") is None:
        found, expected = "workers of Ray, which is not installed", "Ray on this machine and on every node"
        check.problem(("run",), found, expected, f'pip install "{DISTRIBUTION}[ray]"')
    device = reference.device if reference else ""
    if spec is not None and device.startswith("cuda") and not spec.gpus_per_worker:
        found, expected = f"no GPUs for workers of models on {device}", "gpus_per_worker, such as 1"
        check.problem(("run",), found, expected)
    if spec is not None and device.startswith("cuda:"):
        expected = "cuda: a worker sees only the GPUs that the cluster gives it"
        check.problem(("reference", "device"), f"{device} with run", expected)
    return spec
