"""Standard output and standard error that may be closed, full, without a reader, or unable to encode a character.

None of this changes an exit code: the files of a run are the contract, and what cannot be written is dropped.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO


class EnduringStream:
    """A text stream whose writes never fail: after the first failure of the system, further output is dropped.

    lost: that failure. The descriptor is then redirected to the null device, so that the flush at exit succeeds too.
    """

    def __init__(self, stream: TextIO | EnduringStream | None) -> None:
        """Wrap a stream; None, which Python gives for a closed descriptor, becomes one that drops everything."""
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the process
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write ``text``, or drop it after a failure; returns its length in either case."""
        if not isinstance(text, str):  # libraries find out by this whether a stream takes bytes
            raise TypeError(f"found {type(text).__name__}, expected str")
        if self.lost is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Flush, unless an earlier write failed."""
        if self.lost is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._drop(error)

    def _drop(self, error: OSError) -> None:
        self.lost = error
        with contextlib.suppress(OSError):  # a stream without a descriptor needs none of this
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self._stream.fileno())
            finally:
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        if name in {"_stream", "buffer"}:  # bytes written to the buffer would bypass this stream
            raise AttributeError(name)
        return getattr(self._stream, name)


def endure() -> tuple[EnduringStream, EnduringStream]:
    """Replace standard output and standard error by streams that never fail, and return them.

    Closed descriptors are opened on the null device first: the next file to be opened would get their numbers, and
    whatever a library prints would be written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(nowhere, True)
    out, err = EnduringStream(sys.stdout), EnduringStream(sys.stderr)
    sys.stdout, sys.stderr = out, err
    return out, err
