"""The process that watches the time limits of the harness's process, its parent; run by path, never imported there.

Reads lines of JSON from standard input: ``[limit, grace, what]`` starts the clock anew, ``[]`` stops it. At the limit
the parent gets a signal; where that changes nothing within the grace period, the reason is written to standard error
and the parent is killed. Ends with its parent.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import sys
import time


def watch(parent: int, number: int) -> None:
    """Watch until the parent has closed the pipe, or is killed."""
    limit, grace, what = math.inf, 0.0, ""
    since, warned, pending = time.monotonic(), False, b""
    while os.getppid() == parent:
        due = since + limit + grace * warned - time.monotonic()
        ready, _, _ = select.select([0], [], [], max(0.0, min(due, 3600.0)))
        if ready:
            if not (content := os.read(0, 65536)):
                return
            *lines, pending = (pending + content).split(b"\n")
            if lines:
                limit, grace, what = json.loads(lines[-1]) or (math.inf, 0.0, "")
                since, warned = time.monotonic(), False
        elif due <= 0 and warned:
            kill(parent, what, limit + grace)
            return
        elif due <= 0:
            os.kill(parent, number)
            warned = True


def kill(parent: int, what: str, seconds: float) -> None:
    """Say why, then kill."""
    # Whatever stands in a name: one line, no terminal escapes, no commands to a CI runner.
    shown = "".join(c if c.isprintable() else " " for c in what).replace("::", ": :").replace("##", "# #")
    text = f"error: {shown} gave no sign of life for {seconds:g} s and cannot be interrupted: the process is killed\n"
    try:
        os.write(2, text.encode("ascii", "backslashreplace"))
    finally:
        os.kill(parent, signal.SIGKILL)


if __name__ == "__main__":
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    watch(os.getppid(), int(sys.argv[1]))
