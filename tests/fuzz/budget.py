"""How long fuzzing takes, and what no input may cause.

FUZZ_EXAMPLES: examples of every fuzzer, drawn anew on each run. Without it each takes its own few, always the same.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings

from harness.cli import _run
from harness.errors import HarnessError

MOST_SECONDS = 20.0
"""Of the processor, for one example."""
MOST_MEMORY = 512 * 2**20
"""Bytes by which one example may raise the peak of the process."""

_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
_Found = TypeVar("_Found")


def budget(quick: int) -> settings:
    """The settings of a fuzzer that takes ``quick`` examples in ``make test``."""
    return settings(
        max_examples=_EXAMPLES or quick,
        derandomize=not _EXAMPLES,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where the work inside takes more time or memory than any input of a few kilobytes may cost."""
    began, before = time.process_time(), _peak()
    yield
    assert time.process_time() - began < MOST_SECONDS
    assert _peak() - before < MOST_MEMORY


def attempt(function: Callable[[], _Found]) -> _Found | HarnessError:
    """The result, or the error that a user gets with exit code 2; anything else is raised and fails the test."""
    with bounded():
        try:
            return function()
        except HarnessError as error:
            found = error
    assert str(found).strip(), "an error without a message"
    return found


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    code: int
    out: str
    err: str


def command(*arguments: str) -> Ended:
    """Run a command line in this process. Fails for a traceback, or an exit code that there is not."""
    out, err = StringIO(), StringIO()
    with bounded(), redirect_stdout(out), redirect_stderr(err):
        code = _run(list(arguments))
    ended = Ended(code, out.getvalue(), err.getvalue())
    assert "defect of the" not in ended.out + ended.err, ended.out + ended.err
    assert "Traceback" not in ended.out + ended.err, ended.out + ended.err
    assert code in (0, 1, 2, 3)
    return ended


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
