"""Memory and latency of both sides, and the time that the check itself took."""

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


@dataclass(frozen=True)
class Spent:
    """What a stage of the check took. share: of the time until the verdict, 0 to 1; None where that is not known."""

    stage: str
    seconds: float
    share: float | None


def list_times(run: Run) -> list[Spent]:
    """The stages of the check, the longest first, then other variants of the same process and what is unexplained."""
    clock = run.clock
    rows = sorted(clock.seconds.items(), key=lambda row: (-row[1], row[0]))
    rows += [("other variants", clock.others)] if clock.others else []
    rows += [("not explained", clock.unexplained)] if clock.unexplained is not None else []
    return [Spent(stage, seconds, seconds / clock.elapsed if clock.elapsed else None) for stage, seconds in rows]


def size_ratio(run: Run) -> float | None:
    """Stored bytes of the reference over those of the variant, or None where either is not known."""
    measured = next((m for m in run.measurements if m.name == "memory.weight_bytes"), None)
    if measured is not None and measured.reference and measured.variant:
        return measured.reference / measured.variant
    reference, variant = (sum(module.stored_bytes for module in side.modules) for side in (run.reference, run.variant))
    return reference / variant if reference and variant else None
