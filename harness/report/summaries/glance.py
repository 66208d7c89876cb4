"""The key figures at the top of the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.records import Measurement, Run
from harness.report import display, words
from harness.report.summaries import cost


@dataclass(frozen=True)
class Figure:
    """One large number with its title and a line of detail."""

    label: str
    value: str
    detail: str
    unit: str = ""


def figures(run: Run) -> list[Figure]:
    """Size, perplexity, other quality summaries, and the task with the largest loss, if they were measured."""
    found = [_size(run), _perplexity(run) or _bits(run), *_quality(run), _task(run)]
    return [figure for figure in found if figure is not None]


def _find_finite(run: Run, name: str) -> Measurement | None:
    measurement = words.find(run, name)
    return measurement if measurement is not None and measurement.non_finite is None else None


def _size(run: Run) -> Figure | None:
    ratio = cost.size_ratio(run)
    bits = words.bits_per_weight(run.variant.modules)
    if ratio is None:
        return None
    detail = f"{display.number(bits, 3)} bits per weight, everything included" if bits is not None else "stored weights"
    if ratio < 1:
        return Figure("Larger by", f"{display.number(1 / ratio, 3)}×", detail)
    return Figure("Smaller by", "nothing" if ratio == 1 else f"{display.number(ratio, 3)}×", detail)


def _perplexity(run: Run) -> Figure | None:
    ratio, value = _find_finite(run, "perplexity.ratio"), _find_finite(run, "perplexity.value")
    if ratio is None or ratio.change is None:
        return None
    change = ratio.change - 1
    shown = f"×{display.number(ratio.change)}" if change > 1 else f"{display.format_signed(change * 100, 3)}\u202f%"
    sides = format_sides(value.reference, value.variant) if value is not None else ""
    return Figure("Perplexity", shown, sides or _describe_interval(ratio))


def _bits(run: Run) -> Figure | None:
    """Bits per byte, for sides with different tokens."""
    bits = _find_finite(run, "perplexity.bits_per_byte")
    if bits is None or bits.change is None:
        return None
    return Figure("Bits per byte", display.format_signed(bits.change, 3), format_sides(bits.reference, bits.variant))


def format_sides(reference: float | None, variant: float | None) -> str:
    """Both sides with enough digits to distinguish them, or nothing."""
    if reference is None or variant is None:
        return ""
    return " → ".join(display.format_together([reference, variant]))


def _quality(run: Run) -> Iterator[Figure]:
    """The other metrics that are declared as a summary of quality."""
    for name in words.list_summaries(run, "quality"):
        m = _find_finite(run, name)
        if name != "perplexity.ratio" and m is not None and m.change is not None:
            value, unit = display.split_quantity(m.change, m.unit)
            yield Figure(words.title(run, name), value, run.metric(name).description, unit)


def _task(run: Run) -> Figure | None:
    worst = worst_task(run)
    if worst is None:
        return None
    label = "Tasks" if (worst.change or 0.0) >= 0 else "Largest task loss"
    name = words.metric(run, worst.name)
    value = "no loss" if (worst.change or 0.0) >= 0 else display.points(worst.change)
    count = sum(_compares_shares(m) for m in run.measurements)
    return Figure(label, value, f"{count} tasks" if value == "no loss" else name)


def worst_task(run: Run) -> Measurement | None:
    """The score of the task that loses most; None without tasks."""
    tasks = [m for m in run.measurements if _compares_shares(m)]
    return min(tasks, key=lambda m: (m.change or 0.0, m.name), default=None)


def _compares_shares(m: Measurement) -> bool:
    """Whether this is the main score of a task: a share on both sides, higher is better, judged as a difference."""
    sides = (m.reference, m.variant)
    return (
        m.name.startswith("tasks.")
        and m.better == "higher"
        and m.neutral == 0
        and m.change is not None
        and all(side is not None and 0 <= side <= 1 for side in sides)
    )


def _describe_interval(m: Measurement) -> str:
    return "" if m.low is None or m.high is None else " … ".join(display.format_together([m.low, m.high]))
