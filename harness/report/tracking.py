"""What experiment trackers are given: the same parameters, metrics and tags for each of them, and one id a run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from harness.records import Run
from harness.report import asked
from harness.report.digest import Digest, digest
from harness.report.display import clean
from harness.report.numbers import flatten
from harness.system.files import write_atomic


class Logged(NamedTuple):
    """id: the same each time this run is logged, so that it is updated. metrics: finite numbers by name."""

    id: str
    name: str
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def describe(run: Run, folder: Path) -> Logged:
    """What is logged of a run."""
    told = digest(run, folder)
    text = "\0".join((run.name, run.data_key, run.clock.started))
    return Logged(
        id=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32],
        name=told.name,
        parameters=_parameters(run),
        metrics={name: value for name, value in flatten(run).items() if math.isfinite(value)},
        tags=_tags(run, told),
    )


def write_receipt(path: Path, receipt: Mapping[str, str]) -> Path:
    """Write where a run was logged, as JSON, atomically. Raises WriteError."""
    write_atomic(path, f"{json.dumps(dict(receipt), indent=2, sort_keys=True, ensure_ascii=False)}\n".encode())
    return path


def _parameters(run: Run) -> dict[str, str]:
    given = {
        "reference": run.reference.name,
        "variant": run.variant.name,
        "steps": ", then ".join(asked.describe_steps(run.asked)),
        "dtype": run.variant.dtype,
        "device": run.variant.device,
        "harness": run.environment.harness,
    }
    return {key: clean(value, 400) for key, value in given.items() if value}


def _tags(run: Run, told: Digest) -> dict[str, str]:
    given = {
        "verdict": told.verdict,
        "class_of_failure": told.failure,
        "reason": told.reason,
        "comparable": told.comparable,
        "report": told.report,
        "data_key": clean(run.data_key),
    }
    return {key: clean(value, 2000) for key, value in given.items()}
