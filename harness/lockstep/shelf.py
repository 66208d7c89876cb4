"""Memory for the small tensors that taps keep of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Shelf:
    """Memory taken in one piece, before a model fills the rest with what it soon lets go of.

    Small tensors that stay in between would keep that apart, so that logits found no room in it and a pass took more.
    """

    def __init__(self, values: int) -> None:
        """values: how many float64 values are going to be kept, as far as known."""
        self._values = values
        self._free: Tensor | None = None

    def take(self, device: torch.device) -> Tensor:
        """The memory that is left; taken from the device of the first tensor that comes along."""
        if self._free is None:
            self._free = torch.empty(self._values, dtype=torch.float64, device=device)
        return self._free

    def keep(self, rows: Sequence[Tensor]) -> Tensor:
        """The rows [R, N] as float64; in memory of their own where the shelf is full."""
        shape, free = (len(rows), len(rows[0])), self.take(rows[0].device)
        size = shape[0] * shape[1]
        if size > len(free):
            return torch.stack([row.double() for row in rows])
        self._free = free[size:]
        return torch.stack(tuple(rows), out=free[:size].view(shape))
