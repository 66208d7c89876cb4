"""Calls into code that is not the harness's own: plugins, task files, tokenizers, models, libraries.

Such code may do anything but two things. It may not end the process: whatever it raises beside ordinary exceptions
(SystemExit, the panic of a Rust library) becomes a ForeignCodeError that names what ran. And it may not run for ever:

    guard ──▶ "within n seconds: what runs" ──pipe──▶ monitor, a process of its own
      ▲                                                  │ at the limit: a signal, which raises here
      └────────────── ForeignCodeError ◀─────────────────┤ after a grace period: message on stderr, SIGKILL

The signal ends endless Python and searches of ``re``. Code that holds the interpreter and never looks at signals is
killed, so that the exit code is 137 and never 0. What is limited is the time without a sign of life: each guard that
opens or closes, and each progress report, is one.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from harness.errors import ForeignCodeError, HarnessError
from harness.progress import Progress
from harness.system import monitor

LIMIT_VARIABLE = "HARNESS_TIME_LIMIT"
"""Environment variable with the seconds that one unit of foreign work may take without a sign of life."""
DEFAULT_LIMIT = 1800.0
LONG = 24
"""How many limits a unit may take that reports no progress and is long by nature: loading, a compression step."""
GRACE_SECONDS = 30.0
_SIGNAL = getattr(signal, "SIGVTALRM", None)
"""Interrupts a unit; None where the platform has no such signals, and nothing is limited."""


class EndedBySignal(BaseException):
    """A signal asked the process to end: unwind, so that files are closed, then exit with 128 + its number."""

    def __init__(self, number: int) -> None:
        self.number = number


class _LimitReachedError(BaseException):
    """Raised by the signal of the monitor. No ordinary exception, so that ``except Exception`` does not swallow it."""


_OURS = (EndedBySignal, KeyboardInterrupt, GeneratorExit)


def time_limit() -> float:
    """Seconds of one unit. Raises HarnessError for a setting that is no positive number."""
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        limit = float(text) if text else DEFAULT_LIMIT
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise HarnessError(f"{LIMIT_VARIABLE}: found {text!r}, expected a positive number of seconds, such as 1800")
    return limit


@contextmanager
def contain(what: str) -> Iterator[None]:
    """Turn whatever would end the process into a ForeignCodeError; ordinary exceptions pass."""
    try:
        yield
    except (*_OURS, _LimitReachedError, Exception):
        raise
    except BaseException as error:
        said = " ".join(str(error).split())
        raise ForeignCodeError(
            f"{what} raised {type(error).__name__}{f' ({said})' if said else ''}, expected a result or an ordinary "
            "exception; code that a run calls must not end the process: repair or remove it"
        ) from error


def refuse_silent_exits() -> None:
    """Make ``os._exit`` of this process an ordinary SystemExit, which ``contain`` meets; forks keep the real one."""
    real, owner = os._exit, os.getpid()

    def exit_unless_watched(status: int) -> NoReturn:
        if os.getpid() == owner:
            raise SystemExit(status)
        real(status)

    os._exit = exit_unless_watched


@contextmanager
def guard(what: str, patience: int = 1) -> Iterator[None]:
    """``contain``, and a time limit. patience: how many limits this unit may take without a sign of life."""
    with contain(what), _watch_for(what, patience):
        yield


@contextmanager
def _watch_for(what: str, patience: int) -> Iterator[None]:
    if _SIGNAL is None or threading.current_thread() is not threading.main_thread() or _watchdog.foreign_process:
        yield
        return
    unit = _watchdog.begin(what, time_limit() * patience)
    try:
        try:
            yield
        finally:
            _watchdog.end(unit)
    except _LimitReachedError as reached:
        if reached.args[0] is not unit:
            raise
        raise ForeignCodeError(
            f"{what} gave no sign of life for {unit.limit:g} s, its time limit; repair it, or set the environment "
            f"variable {LIMIT_VARIABLE} to more seconds"
        ) from None


def sign_of_life() -> None:
    """Start the clock of the running unit anew."""
    if _watchdog.units and not _watchdog.foreign_process:
        _watchdog.announce()


class Ticking:
    """A progress each of whose reports is a sign of life."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def step(self, what: str, done: int, of: int) -> None:
        """Report, and start the clock of the running unit anew."""
        sign_of_life()
        self._progress.step(what, done, of)


class _TimedUnit:
    def __init__(self, what: str, limit: float) -> None:
        self.what, self.limit, self.deadline = what, limit, math.inf


class _Watchdog:
    """The units that run, innermost last, and the monitor that is told of each change."""

    def __init__(self) -> None:
        self.units: list[_TimedUnit] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    @property
    def foreign_process(self) -> bool:
        """Whether this is a fork of the process that is watched."""
        return os.getpid() != self._owner

    def begin(self, what: str, limit: float) -> _TimedUnit:
        unit = _TimedUnit(what, limit)
        self.units.append(unit)
        self.announce()
        return unit

    def end(self, unit: _TimedUnit) -> None:
        if unit in self.units:
            del self.units[self.units.index(unit) :]
        self.announce()

    def announce(self) -> None:
        """Tell the monitor what runs, and start its clock anew."""
        message: list[object] = []
        if self.units:
            unit = self.units[-1]
            unit.deadline = time.monotonic() + unit.limit
            message = [unit.limit, min(GRACE_SECONDS, unit.limit), unit.what[:300]]
        line = json.dumps(message).encode() + b"\n"
        try:
            self._send(line)
        except OSError:
            self._process = None  # somebody ended it
            self._send(line)

    def _send(self, line: bytes) -> None:
        process = self._process = self._process or self._start()
        assert process.stdin is not None  # noqa: S101 - made with a pipe
        os.write(process.stdin.fileno(), line)

    def _start(self) -> subprocess.Popen[bytes]:
        assert _SIGNAL is not None  # noqa: S101 - nothing is watched where there are no signals
        signal.signal(_SIGNAL, self._on_limit)
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", monitor.__file__, str(int(_SIGNAL))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise HarnessError(f"the monitor that watches time limits cannot be started: {error}") from error

    def _on_limit(self, number: int, frame: FrameType | None) -> None:
        # The unit may have ended while the signal was on its way.
        if self.units and not self.foreign_process and time.monotonic() >= self.units[-1].deadline:
            raise _LimitReachedError(self.units[-1])


_watchdog = _Watchdog()
