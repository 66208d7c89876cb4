"""Which linear layers are given the very same input, and in which order data passes them.

Queries, keys and values are projections of one tensor, so they have one Hessian between them. It is the tensor
itself that tells (the same memory, unchanged since), not the layers' names, which differ from class to class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from harness.modules.decoder_layers import Tap
from harness.numerics.gptq import Hessian

Observe = Callable[[Mapping[str, Tap]], None]
"""Lets each tap see the calibration inputs of the layer of its name."""


class _Latest:
    """The input that was seen last. It is held, so that its memory is not given to another one."""

    def __init__(self) -> None:
        self._held: tuple[Tensor, int] | None = None

    def seen(self, x_NI: Tensor) -> bool:
        """Whether this is that input; from now on it is this one."""
        before, self._held = self._held, (x_NI, x_NI._version)
        if before is None:
            return False
        held_NI, version = before
        same = (held_NI.data_ptr(), held_NI.shape, held_NI.stride(), held_NI.dtype, version)
        return same == (x_NI.data_ptr(), x_NI.shape, x_NI.stride(), x_NI.dtype, x_NI._version)


class SharedHessians:
    """The Hessian of every layer, computed once for layers that see the same inputs.

    Layers that saw the same inputs only sometimes (it depends on the document, say) are given the right sums, too.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._latest = _Latest()
        self._open: tuple[Hessian, set[str]] | None = None
        self._sums: dict[frozenset[str], Hessian] = {}

    def taps(self) -> dict[str, Tap]:
        """A tap for every layer."""
        return {name: self._tap(name) for name in self._names}

    def __getitem__(self, name: str) -> Hessian | None:
        """What is known of the inputs of a layer, None if it has seen none; one object where it is shared."""
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
            if self._latest.seen(x_NI) and self._open and name not in self._open[1]:
                self._open[1].add(name)
                return
            self._close()
            # Computed at once: the model may change the tensor before the next layer is called.
            hessian = Hessian()
            hessian.add(x_NI)
            self._open = hessian, {name}

        return tap

    def _close(self) -> None:
        if self._open:
            hessian, names = self._open
            self._sums.setdefault(frozenset(names), Hessian()).merge(hessian)
        self._open = None


def stages(names: Iterable[str], observe: Observe) -> list[list[str]]:
    """``names`` in the order in which data passes them; layers that see the same input stand together.

    So do the layers of a mixture's experts that differ in the expert's number alone. Layers that no document reaches
    come last. Takes one pass.
    """
    wanted, latest, found = list(names), _Latest(), list[list[str]]()
    placed: set[str] = set()

    def look(name: str) -> Tap:
        def tap(x_NI: Tensor) -> None:
            same = latest.seen(x_NI)
            if name not in placed:
                placed.add(name)
                if same and found:
                    found[-1].append(name)
                else:
                    found.append([name])

        return tap

    observe({name: look(name) for name in wanted})
    merged: dict[frozenset[str], list[str]] = {}
    for stage in found:
        alike = frozenset(re.sub(r"\.\d+(?=\.)|\[\d+\]$", ".*", name) for name in stage)
        merged.setdefault(alike, []).extend(stage)
    unreached = [name for name in wanted if name not in placed]
    return [*merged.values(), unreached] if unreached else list(merged.values())
