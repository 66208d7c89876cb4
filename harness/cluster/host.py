"""Inside a worker: models are opened once, units are computed one by one, and failures come back as data."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.cluster.workers import Unit

LOG_BYTES = 4000
"""Of the end of a worker's log, in an error."""


class Session(Protocol):
    """Models that are open in a worker."""

    def warm(self) -> None:
        """Do now what the first unit would wait for."""
        ...

    def run(self, unit: Unit) -> object:
        """The result of a unit."""
        ...

    def verify(self) -> None:
        """Raise if the models are not what they were when they were opened."""
        ...


class Opener(Protocol):
    """Knows how to open models. It is sent to the workers, so it consists of plain data."""

    def fingerprint(self) -> Mapping[str, str]:
        """What must be the same on all workers: versions of libraries, threads, rounding."""
        ...

    def first(self) -> str:
        """The key of models that every worker will need, and may open before it has a unit; empty if there is none."""
        ...

    def open(self, holds: str) -> Session:
        """Open the models of a key (see Unit.holds); for the empty key, what works without any."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a worker runs, and the file that its errors go to."""

    host: str
    process: int
    log: str
    node: str = ""
    """The cluster's own name of the machine."""

    def read_log(self) -> str:
        """The end of the log; where it lies if it is on another machine."""
        if self.host == socket.gethostname() and Path(self.log).is_file():
            return read_end(Path(self.log))
        return f"{self.log} on {self.host}, process {self.process}" if self.log else ""


@dataclass(frozen=True)
class Fault:
    """An exception in a worker: its class, what it says, and the end of the log with the trace."""

    error: str
    reason: str
    log: str


class Host:
    """One worker."""

    def __init__(self, opener: Opener, threads: int) -> None:
        # Before torch is imported, by which the threads of its sums are fixed.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._opener, self._held = opener, ""
        self._session: Session | None = None

    def place(self) -> Place:
        """Where this worker runs."""
        return Place(socket.gethostname(), os.getpid(), _log_of_this_process())

    def fingerprint(self) -> Mapping[str, str] | Fault:
        """What must be the same on all workers."""
        try:
            return dict(self._opener.fingerprint())
        except Exception as error:  # noqa: BLE001 - the head decides what to do about any of them
            return describe(error)

    def warm(self) -> None:
        """Open what every worker will need. Whatever is wrong with it, the first unit will tell."""
        if key := self._opener.first():
            with suppress(Exception):
                self._open(key).warm()

    def verify(self) -> Fault | None:
        """What is wrong with the models that are open; None if nothing is."""
        try:
            if self._session is not None:
                self._session.verify()
        except Exception as error:  # noqa: BLE001 - the head decides what to do about any of them
            return describe(error)
        return None

    def run(self, unit: Unit) -> object:
        """The result of a unit, or the Fault that it ended in."""
        try:
            session = self._open(unit.holds) if unit.holds else self._opener.open("")
            return session.run(unit)
        except Exception as error:  # noqa: BLE001 - the head decides what to do about any of them
            return describe(error)

    def _open(self, holds: str) -> Session:
        if self._session is None or self._held != holds:
            if self._session is not None:
                self._session.verify()
            self._session = None  # two sets of models may not fit
            self._session = self._opener.open(holds)
            self._held = holds
        return self._session


def describe(error: BaseException) -> Fault:
    """An exception as data, with its trace and the end of this process's log."""
    path = _log_of_this_process()
    log = f"{read_end(Path(path))}\n" if path and Path(path).is_file() else ""
    trace = "".join(traceback.format_exception(error))
    return Fault(type(error).__name__, str(error) or type(error).__name__, log + trace[-LOG_BYTES:])


def read_end(path: Path) -> str:
    """The last lines of a file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        return file.read().decode(errors="replace").strip()


def _log_of_this_process() -> str:
    """The file that standard error goes to; empty if it is none."""
    link = Path(f"/proc/{os.getpid()}/fd/2")
    target = os.readlink(link) if link.exists() else ""
    return target if target.startswith("/") and Path(target).is_file() else ""
