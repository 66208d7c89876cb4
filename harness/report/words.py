"""Words for statuses, verdicts, metrics and formats in the report and the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.errors import name_failure as name_failure
from harness.records import Measurement, ModuleFormat, Run, Verdict
from harness.records.metric import Summary
from harness.report import display


@dataclass(frozen=True)
class Status:
    """How a status is shown: never by colour alone, always with a mark and a word."""

    name: str
    word: str
    mark: str
    headline: str


STATUSES = {
    "pass": Status("pass", "Pass", "✓", "May ship"),
    "fail": Status("fail", "Fail", "✕", "Must not ship"),
    "inconclusive": Status("inconclusive", "Undecided", "?", "Undecided"),
    "error": Status("error", "Error", "!", "Could not be judged"),
    "skipped": Status("skipped", "Skipped", "–", "Skipped"),
}

_ORDER = ("fail", "error", "inconclusive", "skipped", "pass")


def count_warnings(run: Run) -> str:
    """ "2 warnings", for a line beside the verdict."""
    count = len(run.warning_notes)
    return f"{count} warning{'s' * (count != 1)}"


def metric(run: Run, name: str) -> str:
    """The title of a metric, as its measure declares it; an undeclared name is shown unchanged."""
    return run.metric(name).title or name


def title(run: Run, name: str) -> str:
    """The title of a metric with a capital letter; names are unchanged."""
    words = run.metric(name).title
    return words[:1].upper() + words[1:] or name


def list_summaries(run: Run, summary: Summary) -> list[str]:
    """Names of the measured metrics that declare this summary, in the order of measurement."""
    names = dict.fromkeys(m.name for m in run.measurements)
    return [name for name in names if run.metric(name).summary == summary]


def add_labels(name: str, labels: dict[str, str]) -> str:
    """A metric with the labels that distinguish it from others of the same name."""
    inside = ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name


def worst_first(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Blocking rules before advisory ones; within them, those that need attention first, then in file order."""
    return sorted(verdicts, key=lambda verdict: (verdict.level != "block", _ORDER.index(verdict.status)))


def formats(modules: Iterable[ModuleFormat]) -> list[str]:
    """The compressed formats in words, most parameters first: "int4, group 32, simulated"."""
    parameters: dict[str, int] = {}
    for module in modules:
        if module.compressed:
            parameters[describe_format(module)] = parameters.get(describe_format(module), 0) + module.parameters
    return sorted(parameters, key=lambda words: (-parameters[words], words))


def describe_format(module: ModuleFormat) -> str:
    """The format of one module in words."""
    form = module.format
    unit = {"none": "", "group": f"group {form.group_size}"}.get(form.granularity, f"per {form.granularity}")
    weight_only = "dequantized in the kernel" if module.kernel == "real" and module.gemm_kind == "floats" else ""
    parts = [form.name, unit, "simulated" if module.kernel == "simulated" else weight_only]
    return ", ".join(part for part in parts if part)


def points_of(value: float) -> str:
    """A difference of fractions in percentage points, without the unit: for axes that name it."""
    return display.format_signed(value * 100, 3)


def bits_per_weight(modules: Sequence[ModuleFormat]) -> float | None:
    """Stored bits over parameters of all modules together, or None without modules."""
    parameters = sum(module.parameters for module in modules)
    return 8 * sum(module.stored_bytes for module in modules) / parameters if parameters else None


def find(run: Run, name: str, labels: dict[str, str] | None = None) -> Measurement | None:
    """The measurement of that name; without ``labels`` the first one."""
    matching = (m for m in run.measurements if m.name == name and (labels is None or m.labels == labels))
    return next(matching, None)
