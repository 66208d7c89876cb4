"""Reads the table of kernels (``profiles.yaml``) into records."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from harness.errors import PlanError, Problem
from harness.records.base import Record
from harness.system.yaml_file import read_yaml

Granularity = Literal["tensor", "channel", "group", "block", "token"]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Url = Annotated[str, Field(pattern=r"^https://\S+$")]
Day = Annotated[str, Field(pattern=r"^20\d\d-[01]\d-[0-3]\d$")]

_FILE = Path(__file__).parent / "profiles.yaml"


class WeightsTaken(Record):
    """Weight formats that a kernel supports. symmetric: the kind of grid; None: both."""

    formats: Names
    granularities: tuple[Granularity, ...] = Field(min_length=1)
    group_sizes: tuple[int, ...] = ()
    symmetric: bool | None = None


class ActivationsTaken(Record):
    """Input formats that a kernel multiplies with. outliers: columns with large inputs stay in full precision."""

    formats: Names
    granularities: tuple[Granularity, ...] = Field(min_length=1)
    outliers: bool = False


class Kernel(Record):
    """A kernel for matrix products: its targets, supported formats, and the public pages that document it.

    activations: None if the input stays in floating point. arithmetic: products are computed in low precision, so that
    long prompts get faster too; otherwise only memory traffic for weights shrinks. read: the day the pages were read.
    """

    name: str = Field(min_length=1)
    targets: Names
    weights: WeightsTaken
    activations: ActivationsTaken | None = None
    arithmetic: bool
    sources: tuple[Url, ...] = Field(min_length=1)
    read: Day


class CacheKernel(Record):
    """An attention kernel that reads a quantized KV cache. formats: of keys and of values, by name, without scales."""

    name: str = Field(min_length=1)
    targets: Names
    formats: Names
    sources: tuple[Url, ...] = Field(min_length=1)
    read: Day


class Profiles(Record):
    """The whole table. targets: description by name."""

    targets: dict[str, str]
    kernels: tuple[Kernel, ...]
    caches: tuple[CacheKernel, ...]


@cache
def profiles() -> Profiles:
    """Read the bundled table. Raises PlanError for an invalid file."""
    problems: list[Problem] = []
    parsed = read_yaml(_FILE, problems)
    if problems or parsed is None:
        raise PlanError(problems)
    return Profiles.model_validate(parsed.data)


def target_names() -> tuple[str, ...]:
    """Names of all targets, in the order of the table."""
    return tuple(profiles().targets)
