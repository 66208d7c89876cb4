"""Memory and latency: what the variant costs to store and to run beside the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.records import Measurement, Run

_LESS_IS_MORE = {"memory.weight_bytes": 0, "memory.bits_per_weight": 1, "memory.peak_bytes": 2}


@dataclass(frozen=True)
class Cost:
    """All measurements of one family, memory or latency, and why none of them is judged where that is so."""

    measurements: tuple[Measurement, ...]
    not_judged: tuple[str, ...]


def cost(run: Run, family: str) -> Cost:
    """The measurements whose names begin with ``family``; those with both sides first."""
    found = [m for m in run.measurements if m.name.startswith(f"{family}.")]
    found.sort(key=lambda m: (m.reference is None, _LESS_IS_MORE.get(m.name, 9)))
    return Cost(tuple(found), _reasons(found))


def _reasons(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(m.not_judged for m in measurements if m.not_judged))


def size_ratio(run: Run) -> float | None:
    """Stored bytes of the reference over those of the variant, or None where either is not known."""
    measured = next((m for m in run.measurements if m.name == "memory.weight_bytes"), None)
    if measured is not None and measured.reference and measured.variant:
        return measured.reference / measured.variant
    reference, variant = (sum(module.stored_bytes for module in side.modules) for side in (run.reference, run.variant))
    return reference / variant if reference and variant else None
