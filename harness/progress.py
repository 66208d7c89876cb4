"""How long work tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Tells the user how far the work is."""

    def step(self, what: str, done: int, of: int) -> None:
        """``done`` units of ``of`` are ready."""
        ...
