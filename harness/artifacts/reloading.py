"""Reloads an artifact in a fresh process, with no patched class, no cache and no live model."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import harness
from harness.artifacts.exchange import Answer, Exchange, Request
from harness.artifacts.saving import discard
from harness.errors import HarnessError, WriteError
from harness.system.subprocesses import run_process

if TYPE_CHECKING:
    from torch import Tensor

    from harness.progress import Progress

WORKER = "harness.artifacts.worker"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class ReloadError(HarnessError):
    """The artifact cannot be loaded or run by the harness; the message says why."""


def read_back(
    request: Request, documents: Mapping[str, Tensor], place: Path, progress: Progress
) -> tuple[Answer, dict[str, Tensor]]:
    """Reload the artifact in a fresh process and return its answer; ``place``: temporary folder, removed afterwards.

    Raises ReloadError with the loader's reason or the last lines of a process that died, and WriteError.
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
    def on_line(line: str) -> None:
        if match := re.fullmatch(r"(\d+) (\d+)", line):
            progress.step("artifact: read back", int(match[1]), int(match[2]))

    command = [sys.executable, "-P", "-m", WORKER, str(exchange.folder)]
    failure = run_process(command, _environment(), on_line)
    if failure is None:
        return
    if reason := exchange.get_refusal():
        raise ReloadError(reason)
    quoted = f"; its last output: {' | '.join(failure.said)}" if failure.said else ""
    raise ReloadError(f"the process that reloaded it {failure.how}{quoted}")


def _environment() -> dict[str, str]:
    """This process's environment, with this harness on the import path and one thread."""
    root = str(Path(harness.__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
