"""What stands in a run folder in place of a run that could not be made."""

from __future__ import annotations

from typing import Literal

from harness.errors import FailureClass
from harness.records.base import Record

FAILURE_FILE = "failure.json"
"""Stands in the run folder in place of run.json where a variant could not be run."""


class Failure(Record):
    """The content of failure.json: why there is no run.json. message: as the terminal showed it."""

    schema_version: Literal[1] = 1
    name: str
    exit_code: Literal[2] = 2
    failure: FailureClass
    message: str
