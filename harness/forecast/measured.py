"""Lists every metric that a plan will measure, with the number of documents behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from harness.data.task_sizes import TaskSize
from harness.forecast.sizes import document_count
from harness.measures._items import BITS_PER_BYTE, PERPLEXITIES, TASK_METRICS
from harness.planning.specs import SuiteSpec
from harness.records import Measurement, Metric, Run, find_metric


@dataclass(frozen=True)
class Measured:
    """A metric, the suite that measures it, and its number of independent observations (``metric.units``).

    documents: None if not known before the run, 0 if the metric is counted.
    """

    metric: Metric
    suite: str
    documents: int | None


def list_measured(suites: Sequence[SuiteSpec], run: Run | None = None) -> list[Measured]:
    """Metrics in the order of the suites; names with ``*`` stay if nothing tells the complete names.

    run: an earlier run, which knows names, units and numbers of documents that files do not tell.
    """
    known = {found.name: found for found in run.measurements} if run else {}
    return [_fill_in_documents(each, known) for suite in suites for each in _list_of_suite(suite, known)]


def complete_metric(metric: Metric, found: Measurement) -> Metric:
    """The metric with properties that only a measurement tells: its unit, direction and neutral value."""
    return metric.model_copy(update={"unit": found.unit, "better": found.better, "neutral": found.neutral})


def _list_of_suite(suite: SuiteSpec, known: dict[str, Measurement]) -> Iterator[Measured]:
    documents = document_count(suite.documents)
    for measure in suite.measures:
        tasks = measure.task_sizes()
        for task in tasks:
            yield from (Measured(metric, suite.name, task.items) for metric in _task_metrics(task, known))
        if not tasks:
            size = measure.sample_size(documents)
            yield from (Measured(metric, suite.name, size) for metric in measure.produces())


def _task_metrics(task: TaskSize, known: dict[str, Measurement]) -> Iterator[Metric]:
    """The metrics of one task: declared by its file and derived ones, else those of an earlier run."""
    seen = [found for name, found in known.items() if name.startswith(f"tasks.{task.name}.")]
    if seen:
        yield from (complete_metric(_task_metric(task, found.name.split(".", 2)[2]), found) for found in seen)
        return
    for name in task.metrics:
        metric = _task_metric(task, name)
        if name in (*PERPLEXITIES, BITS_PER_BYTE):
            yield metric
            if name != BITS_PER_BYTE:
                yield _task_metric(task, f"{name}_ratio")
        else:
            yield metric.model_copy(update={"unit": "share", "better": "higher"})
            for derived in ("recovery", "flips", "flips_to_wrong", "flips_to_right"):
                yield _task_metric(task, derived)
            if task.choices != 0 and name == "accuracy":
                for derived in ("ece", "brier"):
                    yield _task_metric(task, derived)
    if not task.metrics:
        yield _task_metric(task, "*")


def _task_metric(task: TaskSize, metric: str) -> Metric:
    found = find_metric(f"tasks.{task.name}.{metric}", TASK_METRICS)
    return found or Metric(name=f"tasks.{task.name}.{metric}", unit="score", better="neither")


def _fill_in_documents(each: Measured, known: dict[str, Measurement]) -> Measured:
    """Fill in the number of documents from the earlier run, if the plan does not tell it."""
    measurement = known.get(each.metric.name)
    if each.documents is not None or measurement is None:
        return each
    return replace(each, documents=measurement.clusters)
