"""Where a run lost most: the module, document and task with the largest loss, for outputs without the report."""

from __future__ import annotations

from collections.abc import Iterator

from harness.records import Run
from harness.report import display, words
from harness.report.display import clean
from harness.report.summaries.glance import worst_task


def list_worst(run: Run) -> list[str]:
    """One phrase for each: the worst module of every metric that names one, the worst document, the worst task."""
    return [clean(text, 200) for text in _describe_worst(run)]


def _describe_worst(run: Run) -> Iterator[str]:
    for m in run.measurements:
        if not m.change or m.non_finite is not None:
            continue
        if m.name.endswith(".worst") and "module" in m.labels:
            yield f"{m.labels['module']} ({words.metric(run, m.name)} {display.number(m.change)})"
        if "worst_document" in m.labels:
            yield f"document {m.labels['worst_document']} (largest loss)"
    task = worst_task(run)
    if task is not None and task.change and task.change < 0:
        yield f"{task.name} (largest task loss {display.points(task.change)})"
