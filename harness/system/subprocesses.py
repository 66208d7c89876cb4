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


class Child:
    """A process in a session of its own, whose output is read as it comes; a context at whose end it is gone.

    folder: working directory. told: whether it is to read lines from this process; otherwise its input is empty.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None, told: bool = False
    ) -> None:
        """Start it."""
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed on exit
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE if told else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        # In a thread, since children of the process may keep the stream open after it has ended.
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Child:
        """The process, which runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it with its children, and close what was open."""
        self.end()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def tell(self, line: str) -> None:
        """Let it read a line, the last one. A process that has ended reads nothing; ``follow`` says how it ended."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.write(f"{line}\n")
                self._process.stdin.close()

    def follow(self, on_line: Callable[[str], None], limit: float | None = None) -> Failure | None:
        """Wait until it has ended; None if with exit code 0. Afterwards it is gone, as when ``on_line`` raises.

        on_line: called in this thread with every line of standard output. limit: timeout in seconds from now.
        """
        begun, how = time.monotonic(), ""
        try:
            while self.runs and not how:
                with suppress(queue.Empty):
                    on_line(self._lines.get(timeout=_POLL_SECONDS).rstrip("\n"))
                if limit is not None and time.monotonic() - begun > limit:
                    how = f"was ended after {limit:g} s, its timeout"
        finally:
            code = self.end()
        while not self._lines.empty():
            on_line(self._lines.get().rstrip("\n"))
        how = how or _describe_exit(code)
        if not how:
            return None
        self._errors.seek(0)
        return Failure(how, tuple(line.strip() for line in self._errors.read().splitlines() if line.strip())[-TAIL:])

    def end(self) -> int:
        """End it with its children; its exit code."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._listener.join()
        return code

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)


def run_process(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    folder: Path | None = None,
    limit: float | None = None,
) -> Failure | None:
    """Run a command to completion, which is told nothing (see Child); None if it ends with exit code 0."""
    with Child(command, environment, folder) as child:
        return child.follow(on_line, limit)


def _describe_exit(code: int) -> str:
    """How a process failed; empty if it succeeded."""
    if code >= 0:
        return f"ended with exit code {code}" if code else ""
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"was ended by {name}" + (" (memory may have run out)" if name == "SIGKILL" else "")
