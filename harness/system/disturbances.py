"""What the operating system counts that makes times incomparable: swapping, throttling, another clock limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SWAPPING, THROTTLING, CLOCK = "swapping", "thermal throttling", "a change of the clock limits"
KINDS = (SWAPPING, THROTTLING, CLOCK)
_CPU = "sys/devices/system/cpu"
_FILES = {
    THROTTLING: (f"{_CPU}/cpu[0-9]*/thermal_throttle/*_throttle_count",),
    CLOCK: (
        f"{_CPU}/cpu[0-9]*/cpufreq/scaling_max_freq",
        f"{_CPU}/cpu[0-9]*/cpufreq/scaling_min_freq",
        f"{_CPU}/intel_pstate/no_turbo",
        f"{_CPU}/cpufreq/boost",
    ),
}


@dataclass(frozen=True)
class Counters:
    """Counters and settings by kind and name; a kind without any is not observable on this machine."""

    values: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def changes_until(self, later: Counters) -> list[str]:
        """The kinds of which a counter or a setting differs, or appeared or vanished, in the order of KINDS."""
        return [kind for kind in KINDS if self.values.get(kind, {}) != later.values.get(kind, {})]

    def unobservable(self) -> list[str]:
        """The kinds that the operating system shows nothing of."""
        return [kind for kind in KINDS if not self.values.get(kind)]


def read_counters(root: Path = Path("/")) -> Counters:
    """Read pages swapped (in or out, of the whole machine), throttle counts, and limits and turbo of the clock.

    The current frequency is not read: it moves with every idle moment, and blocks A B B A cancel its drift.
    """
    values = {SWAPPING: _swapped_pages(root / "proc/vmstat")}
    for kind, patterns in _FILES.items():
        paths = (path for pattern in patterns for path in root.glob(pattern))
        values[kind] = {str(path): number for path in paths if (number := _number(path)) is not None}
    return Counters(values)


def _swapped_pages(path: Path) -> dict[str, int]:
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return {row[0]: int(row[1]) for row in rows if row[:1] in (["pswpin"], ["pswpout"])}
    except (OSError, ValueError, IndexError):
        return {}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
