"""The protocol by which long computations report progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Reports the progress of the work to the user."""

    def step(self, what: str, done: int, of: int) -> None:
        """``done`` of ``of`` units are done."""
        ...
