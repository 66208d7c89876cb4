"""The process that reloads artifacts, which can be started before there is one: its imports are not waited for then."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import harness
from harness.system.subprocesses import Child

WORKER = "harness.artifacts.worker"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_EARLY: ContextVar[Child | None] = ContextVar("early", default=None)
"""A process that waits for the first artifact."""


@contextmanager
def start_early() -> Iterator[None]:
    """Start the process for the first artifact that is reloaded in the block; one that was not needed is ended."""
    with start() as child:
        token = _EARLY.set(child)
        try:
            yield
        finally:
            _EARLY.reset(token)


def start() -> Child:
    """A process that imports its libraries and waits to be told the folder of an Exchange."""
    return Child([sys.executable, "-P", "-m", WORKER], _environment(), told=True)


def take() -> Child:
    """The process that was started early, once, if it still runs; otherwise one that starts now."""
    early = _EARLY.get()
    _EARLY.set(None)
    return early if early is not None and early.runs else start()


def _environment() -> dict[str, str]:
    """This process's environment, with this harness on the import path and one thread."""
    root = str(Path(harness.__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
