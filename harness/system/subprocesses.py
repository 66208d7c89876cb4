"""A process beside this one that prints its progress: heard while it runs, quoted when it fails, never outliving us."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TAIL = 20
"""Last lines of a failed process's error stream that are kept."""
_TICK = 0.05
"""Seconds between two looks at whether it has ended."""


@dataclass(frozen=True)
class Failure:
    """How a process failed ("ended with exit code 3"), and the last lines of its error stream that are not blank."""

    how: str
    said: tuple[str, ...]


def run_to_end(
    command: Sequence[str],
    environment: Mapping[str, str],
    heard: Callable[[str], None],
    folder: Path | None = None,
    limit: float | None = None,
) -> Failure | None:
    """Run a command to its end; None where it ends with exit code 0.

    heard: gets every line of standard output, in this thread. folder: where it works. limit: seconds after which it is
    ended. The process and what it started are gone when this returns, or when ``heard`` raises.
    """
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()

        def listen() -> None:
            for line in process.stdout or ():
                lines.put(line)

        # Beside, since what the process started may keep the stream open when it has ended.
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        how = ""
        try:
            while process.poll() is None and not how:
                with suppress(queue.Empty):
                    heard(lines.get(timeout=_TICK).rstrip("\n"))
                if limit is not None and time.monotonic() - begun > limit:
                    how = f"was ended after {limit:g} s, its timeout"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            listener.join()
        while not lines.empty():
            heard(lines.get().rstrip("\n"))
        how = how or _ended(code)
        if not how:
            return None
        errors.seek(0)
        return Failure(how, tuple(line.strip() for line in errors.read().splitlines() if line.strip())[-TAIL:])


def _ended(code: int) -> str:
    """How a process failed; empty if it did not."""
    if code >= 0:
        return f"ended with exit code {code}" if code else ""
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"was ended by {name}" + (" (memory may have run out)" if name == "SIGKILL" else "")
