"""What stands in a run folder in place of a run that could not be made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.errors import FailureClass
from harness.records.base import Record

FAILURE_FILE = "failure.json"
"""Stands in the run folder in place of run.json where a variant could not be run."""


class Fault(Record):
    """One reason why there is no run, at a line of one of the user's files. message: without the place."""

    file: str
    line: Annotated[int, Field(ge=1)] = 1
    message: str


class Failure(Record):
    """The content of failure.json: why there is no run.json. message: as the terminal showed it.

    exit_code: that of the check: 2, or 128 + n where signal n ended it. source: the variant file. faults: the same
    reasons by file and line. at: when, in ISO 8601. harness: its version.
    """

    schema_version: Literal[1] = 1
    name: str
    exit_code: int = 2
    failure: FailureClass
    message: str
    source: str = ""
    faults: tuple[Fault, ...] = ()
    at: str = ""
    harness: str = ""
