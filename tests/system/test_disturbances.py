"""Counters of an operating system that is made of a few files."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.system.disturbances import CLOCK, KINDS, SWAPPING, THROTTLING, read_counters

VMSTAT = "proc/vmstat"
THROTTLED = "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count"
LIMIT = "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq"
TURBO = "sys/devices/system/cpu/intel_pstate/no_turbo"
FILES = {VMSTAT: "nr_free_pages 7\npswpin 3\npswpout 4\n", THROTTLED: "2\n", LIMIT: "3600000\n", TURBO: "0\n"}


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "kinds"),
    [
        (VMSTAT, "nr_free_pages 1\npswpin 3\npswpout 4\n", []),
        (VMSTAT, "nr_free_pages 7\npswpin 3\npswpout 5\n", [SWAPPING]),
        (VMSTAT, "nr_free_pages 7\npswpin 9\npswpout 4\n", [SWAPPING]),
        (THROTTLED, "3\n", [THROTTLING]),
        (LIMIT, "1200000\n", [CLOCK]),
        (TURBO, "1\n", [CLOCK]),
    ],
)
def test_what_happened_in_between_is_named(name: str, content: str, kinds: list[str], tmp_path: Path) -> None:
    write(tmp_path, FILES)
    before = read_counters(tmp_path)
    assert before.unobservable() == []
    write(tmp_path, {name: content})
    assert before.changes_until(read_counters(tmp_path)) == kinds


def test_what_is_absent_or_unreadable_is_not_observable(tmp_path: Path) -> None:
    assert read_counters(tmp_path).unobservable() == list(KINDS)
    write(tmp_path, {VMSTAT: "pswpin\n", THROTTLED: "many", TURBO: "0\n"})
    assert read_counters(tmp_path).unobservable() == [SWAPPING, THROTTLING]
