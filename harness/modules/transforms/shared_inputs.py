"""Groups linear layers that read the same input tensor, in the order of the data flow.

Queries, keys and values are projections of one tensor, so they share one Hessian. Sharing is detected by the tensor
itself (same memory, not modified since), not by layer names, which differ between classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from harness.modules.decoder_layers import Tap
from harness.numerics.gptq import Hessian

Observe = Callable[[Mapping[str, Tap]], None]
"""Calls each tap with the calibration inputs of the layer of its name."""


class _LatestInput:
    """The latest input. It is referenced, so that its memory is not reused by another tensor."""

    def __init__(self) -> None:
        self._held: tuple[Tensor, int] | None = None

    def is_same(self, x_NI: Tensor) -> bool:
        """Whether ``x_NI`` is the latest input; it becomes the latest."""
        before, self._held = self._held, (x_NI, x_NI._version)
        if before is None:
            return False
        held_NI, version = before
        same = (held_NI.data_ptr(), held_NI.shape, held_NI.stride(), held_NI.dtype, version)
        return same == (x_NI.data_ptr(), x_NI.shape, x_NI.stride(), x_NI.dtype, x_NI._version)


class SharedHessians:
    """The Hessian of every layer, computed once for layers that read the same inputs.

    Layers that share inputs only sometimes (depending on the document, say) get correct sums too.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._latest = _LatestInput()
        self._open: tuple[Hessian, set[str]] | None = None
        self._sums: dict[frozenset[str], Hessian] = {}

    def taps(self) -> dict[str, Tap]:
        """A tap for every layer."""
        return {name: self._tap(name) for name in self._names}

    def __getitem__(self, name: str) -> Hessian | None:
        """The Hessian of a layer's inputs, None if it had none; layers with the same inputs get the same object."""
        self._close()
        parts = [hessian for names, hessian in self._sums.items() if name in names]
        if len(parts) < 2:
            return parts[0] if parts else None
        whole = Hessian()
        for part in parts:
            whole.merge(part)
        return whole

    def _tap(self, name: str) -> Tap:
        def tap(x_NI: Tensor) -> None:
            if self._latest.is_same(x_NI) and self._open and name not in self._open[1]:
                self._open[1].add(name)
                return
            self._close()
            # Computed immediately: the model may modify the tensor before the next layer is called.
            hessian = Hessian()
            hessian.add(x_NI)
            self._open = hessian, {name}

        return tap

    def _close(self) -> None:
        if self._open:
            hessian, names = self._open
            self._sums.setdefault(frozenset(names), Hessian()).merge(hessian)
        self._open = None


def order_by_input(names: Iterable[str], observe: Observe) -> list[list[str]]:
    """Group ``names`` by input, in the order of the data flow; layers that read the same input form one group.

    So do the layers of a mixture's experts that differ only in the expert index. Layers that no document reaches
    come last. Takes one pass.
    """
    wanted, latest, groups = list(names), _LatestInput(), list[list[str]]()
    placed: set[str] = set()

    def look(name: str) -> Tap:
        def tap(x_NI: Tensor) -> None:
            same = latest.is_same(x_NI)
            if name not in placed:
                placed.add(name)
                if same and groups:
                    groups[-1].append(name)
                else:
                    groups.append([name])

        return tap

    observe({name: look(name) for name in wanted})
    merged: dict[frozenset[str], list[str]] = {}
    for group in groups:
        alike = frozenset(re.sub(r"\.\d+(?=\.)|\[\d+\]$", ".*", name) for name in group)
        merged.setdefault(alike, []).extend(group)
    unreached = [name for name in wanted if name not in placed]
    return [*merged.values(), unreached] if unreached else list(merged.values())
