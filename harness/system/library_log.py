"""Keeps what libraries print to standard error (warnings of imports, progress bars, loggers) out of the terminal.

Nothing is lost: it goes to a log file in every run folder. What the harness itself has to say goes to standard output
or is a note of the run, and errors are printed after the work has ended.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

LOG = "libraries.log"


class LibraryLog:
    """A text stream that writes to the log of every folder, each created with the first text.

    After ``close`` it passes text on to ``after``: loggers that libraries made meanwhile keep this stream.
    """

    def __init__(self, folders: Sequence[Path], after: TextIO) -> None:
        self._folders = tuple(folders)
        self._after = after
        self._files: list[TextIO] | None = None
        self._closed = False

    encoding = "utf-8"
    errors = "backslashreplace"

    def write(self, text: str) -> int:
        """Write to every log; a folder in which that fails gets no more, and nothing else changes."""
        if self._closed:
            return self._after.write(text)
        if self._files is None:
            self._files = list(self._open())
        for file in list(self._files):
            try:
                file.write(text)
                file.flush()
            except OSError:
                self._files.remove(file)
        return len(text)

    def flush(self) -> None:
        """Written text is flushed already."""
        if self._closed:
            self._after.flush()

    def isatty(self) -> bool:
        """Never one, so that progress bars stay short."""
        return False

    def fileno(self) -> int:
        """The descriptor of standard error, for libraries and subprocesses that write below Python."""
        return self._after.fileno()

    def close(self) -> None:
        """Close the logs."""
        self._closed = True
        for file in self._files or ():
            with contextlib.suppress(OSError):
                file.close()

    def _open(self) -> Iterator[TextIO]:
        for folder in self._folders:
            with contextlib.suppress(OSError):
                yield (folder / LOG).open("w", encoding=self.encoding, errors=self.errors)


@contextlib.contextmanager
def keep_library_noise(folders: Sequence[Path]) -> Iterator[None]:
    """Redirect standard error to the log of these folders while the block runs; logs of earlier runs are deleted."""
    for folder in folders:
        with contextlib.suppress(OSError):
            (folder / LOG).unlink(missing_ok=True)
    before = sys.stderr
    log = LibraryLog(folders, before)
    sys.stderr = log
    try:
        yield
    finally:
        sys.stderr = before
        log.close()
