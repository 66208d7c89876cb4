"""Memory and latency of both sides."""

from __future__ import annotations

from dataclasses import dataclass

from harness.records import Measurement, Run

_FIRST = {"memory.weight_bytes": 0, "memory.bits_per_weight": 1, "memory.peak_bytes": 2}
_FLOOR = "latency.floor"


@dataclass(frozen=True)
class CostFamily:
    """All measurements of one family, memory or latency.

    sides: those with a value on each side. ratios: those with a comparison only. not_judged: why some are not judged.
    disturbed: what happened to the machine meanwhile, so that they decide nothing.
    """

    sides: tuple[Measurement, ...]
    ratios: tuple[Measurement, ...]
    not_judged: tuple[str, ...]
    disturbed: tuple[str, ...]


def collect_costs(run: Run, family: str) -> CostFamily:
    """The measurements whose names begin with ``family``, the most telling first."""
    measurements = [m for m in run.measurements if m.name.startswith(f"{family}.")]
    measurements.sort(key=lambda m: _FIRST.get(m.name, 9))
    reasons = (m.not_judged for m in measurements if m.not_judged and m.name != _FLOOR)
    return CostFamily(
        sides=tuple(m for m in measurements if _has_sides(m)),
        ratios=tuple(m for m in measurements if not _has_sides(m)),
        not_judged=tuple(dict.fromkeys(reasons)),
        disturbed=tuple(dict.fromkeys(m.disturbed for m in measurements if m.disturbed)),
    )


def _has_sides(m: Measurement) -> bool:
    return m.non_finite is None and all(side is not None and side >= 0 for side in (m.reference, m.variant))


def size_ratio(run: Run) -> float | None:
    """Stored bytes of the reference over those of the variant, or None where either is not known."""
    measured = next((m for m in run.measurements if m.name == "memory.weight_bytes"), None)
    if measured is not None and measured.reference and measured.variant:
        return measured.reference / measured.variant
    reference, variant = (sum(module.stored_bytes for module in side.modules) for side in (run.reference, run.variant))
    return reference / variant if reference and variant else None
