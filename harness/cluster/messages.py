"""What the head of a check and its workers send each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness import errors
from harness.concluding.pair import PairFacts, hash_data
from harness.concluding.pair import Unit as PlannedUnit
from harness.errors import HarnessError
from harness.planning.sampling.sample import Sample
from harness.planning.specs import Plan
from harness.tables.store import TableFile

if TYPE_CHECKING:
    import pandas as pd

DESCRIBE = "describe"
"""The unit by which the head learns what is to be done."""
Frames = Mapping[str, "pd.DataFrame"]


@dataclass(frozen=True)
class Rows:
    """What one unit commits to the tables of a suite, encoded where it was computed: the head only stores it."""

    suite: str
    unit: str
    tables: tuple[TableFile, ...]


@dataclass(frozen=True)
class Wrong:
    """Why a variant could not be made or observed: the class of the error, and what it says."""

    error: str
    text: str


@dataclass(frozen=True)
class Described:
    """What is known of one variant once it is made. plan: with its openings settled. samples: by suite."""

    plan: Plan
    facts: PairFacts
    units: tuple[PlannedUnit, ...]
    samples: Mapping[str, Sample]
    made: str = ""
    """The hash of the file in which a variant that took documents to make is handed on; empty if it is not."""


@dataclass(frozen=True)
class Computed:
    """The rows of a unit by variant, and what tells the head that they belong to the others.

    inputs: of each variant, hashes of what its tables depend on. reports: of each variant and suite, the hash of the
    report of the pass: its kernels and whether the reference repeats itself. errors: of the variants without rows.
    made: hashes of the files from which variants were taken that this worker did not make itself.
    """

    rows: Mapping[str, Sequence[Rows]]
    inputs: Mapping[str, Mapping[str, str]]
    reports: Mapping[tuple[str, str], str]
    errors: Mapping[str, Wrong]
    seconds: Mapping[str, Mapping[str, float]]
    made: Mapping[str, str] = field(default_factory=dict)


def hash_inputs(facts: PairFacts) -> dict[str, str]:
    """Of everything that tables depend on, by what it is, without the name of the processor."""
    environment = facts.environment.model_dump(mode="json", exclude={"processor"})
    return {name: found[:16] for name, found in (facts.depends | {"environment": hash_data(environment)}).items()}


def hash_frames(frames: Frames) -> str:
    """The hash of all values of some tables, and of the names of their columns."""
    digest = hashlib.sha256()
    for name, frame in sorted(frames.items()):
        digest.update(repr((name, frame.to_dict("list"))).encode())
    return digest.hexdigest()


def is_harness_error(name: str) -> bool:
    """Whether a class of this name is an error that a user can act on."""
    found = getattr(errors, name, None)
    return isinstance(found, type) and issubclass(found, HarnessError)


def restore_error(wrong: Wrong) -> HarnessError:
    """The error of a worker, of its class."""
    found = getattr(errors, wrong.error, HarnessError)
    error: HarnessError = found.__new__(found)
    Exception.__init__(error, wrong.text)
    return error
