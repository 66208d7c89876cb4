"""Reading an artifact back in a process that knows nothing of this one: no patched class, no cache, no live model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import harness
from harness.artifacts.exchange import Answer, Exchange, Request
from harness.artifacts.saving import discard
from harness.errors import HarnessError, WriteError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.probes import Progress

WORKER = "harness.artifacts.worker"
LINES = 12
"""Last lines of what a failed process said that are shown."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class NotReadBackError(HarnessError):
    """The artifact is no model that the harness would load, or cannot be run; the message says why."""


def read_back(
    request: Request, documents: Mapping[str, Tensor], place: Path, progress: Progress
) -> tuple[Answer, dict[str, Tensor]]:
    """What a fresh process finds; ``place`` is a folder for the files in between, which is removed again.

    Raises NotReadBackError with the reason of the loader, or the last lines of a process that died, and WriteError.
    """
    exchange = Exchange(place)
    try:
        discard(place)
        place.mkdir(parents=True)
        try:
            exchange.put_request(request, dict(documents))
            _run(exchange, progress)
            return exchange.get_answer()
        finally:
            discard(place)
    except OSError as error:
        raise WriteError(f"{place}: {error.strerror or error}; the artifact could not be compared") from error


def _run(exchange: Exchange, progress: Progress) -> None:
    said = exchange.folder / "stderr.txt"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER, str(exchange.folder)],
            env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
        try:
            for line in process.stdout or ():
                if found := re.fullmatch(r"(\d+) (\d+)\n", line):
                    progress.step("artifact: read back", int(found[1]), int(found[2]))
            code = process.wait()
        finally:
            process.kill()
            process.wait()
    if code == 0:
        return
    if reason := exchange.get_refusal():
        raise NotReadBackError(reason)
    raise NotReadBackError(f"the process that read it back {_ended(code)}{_tail(said)}")


def _environment() -> dict[str, str]:
    """That of this process, with this very harness to import and one thread."""
    root = str(Path(harness.__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in {each.value for each in signal.Signals} else str(-code)
    return f"was ended by {name}" + (" (memory may have run out)" if name == "SIGKILL" else "")


def _tail(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LINES:]
    return "; it said last: " + " | ".join(line.strip() for line in lines if line.strip()) if lines else ""
