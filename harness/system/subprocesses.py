"""Child processes: output is streamed while they run and quoted if they fail; they never outlive this process."""

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
"""Number of last lines of a failed process's error stream to keep."""
_POLL_SECONDS = 0.05
"""Seconds between two checks whether the process has ended."""


@dataclass(frozen=True)
class Failure:
    """How a process failed ("ended with exit code 3"), and the last non-blank lines of its error stream."""

    how: str
    said: tuple[str, ...]


def run_process(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    folder: Path | None = None,
    limit: float | None = None,
) -> Failure | None:
    """Run a command to completion; None if it ends with exit code 0.

    on_line: called in this thread with every line of standard output. folder: working directory. limit: timeout in
    seconds. The process and its children are gone when this returns, or when ``on_line`` raises.
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

        # In a thread, since children of the process may keep the stream open after it has ended.
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        how = ""
        try:
            while process.poll() is None and not how:
                with suppress(queue.Empty):
                    on_line(lines.get(timeout=_POLL_SECONDS).rstrip("\n"))
                if limit is not None and time.monotonic() - begun > limit:
                    how = f"was ended after {limit:g} s, its timeout"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            listener.join()
        while not lines.empty():
            on_line(lines.get().rstrip("\n"))
        how = how or _describe_exit(code)
        if not how:
            return None
        errors.seek(0)
        return Failure(how, tuple(line.strip() for line in errors.read().splitlines() if line.strip())[-TAIL:])


def _describe_exit(code: int) -> str:
    """How a process failed; empty if it succeeded."""
    if code >= 0:
        return f"ended with exit code {code}" if code else ""
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"was ended by {name}" + (" (memory may have run out)" if name == "SIGKILL" else "")
