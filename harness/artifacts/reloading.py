"""Reloads an artifact in a fresh process, with no patched class, no cache and no live model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.artifacts.exchange import Answer, Exchange, Request
from harness.artifacts.fresh_process import take
from harness.artifacts.saving import discard
from harness.errors import HarnessError, WriteError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.progress import Progress


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

    with take() as process:
        process.tell(str(exchange.folder))
        failure = process.follow(on_line)
    if failure is None:
        return
    if reason := exchange.get_refusal():
        raise ReloadError(reason)
    quoted = f"; its last output: {' | '.join(failure.said)}" if failure.said else ""
    raise ReloadError(f"the process that reloaded it {failure.how}{quoted}")
