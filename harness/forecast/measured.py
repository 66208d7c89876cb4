"""Every metric that a plan will measure, one by one, with the number of documents behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.forecast.sizes import TaskSize, document_count, prompt_count, task_sizes
from harness.measures import Measure
from harness.measures._items import BITS_PER_BYTE, DERIVED, PERPLEXITIES
from harness.measures.generation import Generation
from harness.measures.tasks import Tasks
from harness.planning.specs import SuiteSpec
from harness.records import Measurement, Metric, Run


@dataclass(frozen=True)
class Measured:
    """A metric, the suite that measures it, and how many independent units it will rest on.

    documents: None where it is not known before the run, 0 where the metric is not sampled. units: what they are.
    """

    metric: Metric
    suite: str
    documents: int | None
    units: str


def measured(suites: Sequence[SuiteSpec], run: Run | None = None) -> list[Measured]:
    """Metrics in the order of the suites; names with ``*`` stay where nothing says which names there will be.

    run: an earlier run, which knows the names, units and numbers of documents that files do not tell.
    """
    known = {found.name: found for found in run.measurements} if run else {}
    return [_informed(each, known) for suite in suites for each in _of_suite(suite, known)]


def _of_suite(suite: SuiteSpec, known: dict[str, Measurement]) -> Iterator[Measured]:
    documents = document_count(suite.documents)
    for measure in suite.measures:
        if isinstance(measure, Tasks):
            for task in task_sizes(measure):
                for metric in _task_metrics(task, known):
                    yield Measured(metric, suite.name, task.items, "items")
        elif isinstance(measure, Measure):
            for metric in measure.produces():
                yield Measured(metric, suite.name, *_count(measure, documents))


def _count(measure: Measure, documents: int | None) -> tuple[int | None, str]:
    if measure.table == "timings":
        repeats = getattr(measure, "repeats", None)
        return (repeats if isinstance(repeats, int) else None), "timing blocks"
    if isinstance(measure, Generation):
        return prompt_count(measure, documents), "prompts"
    return (0, "") if measure.table == "weights" else (documents, "documents")


def _task_metrics(task: TaskSize, known: dict[str, Measurement]) -> Iterator[Metric]:
    """The metrics of one task: those its file declares and those that follow, else those that an earlier run saw."""
    seen = [found for name, found in known.items() if name.startswith(f"tasks.{task.name}.")]
    if seen:
        yield from (Metric(name=m.name, unit=m.unit, better=m.better, neutral=m.neutral) for m in seen)
        return
    for metric in task.metrics:
        name = f"tasks.{task.name}.{metric}"
        if metric in (*PERPLEXITIES, BITS_PER_BYTE):
            bits = metric == BITS_PER_BYTE
            yield Metric(name=name, unit="bits/byte" if bits else "perplexity", better="lower")
            if not bits:
                yield Metric(name=f"{name}_ratio", unit="ratio", better="lower", neutral=1.0)
        else:
            yield Metric(name=name, unit="share", better="higher")
            for derived in ("recovery", "flips", "flips_to_wrong", "flips_to_right"):
                yield DERIVED[derived].model_copy(update={"name": f"tasks.{task.name}.{derived}"})
            if task.choices != 0 and metric == "accuracy":
                for derived in ("ece", "brier"):
                    yield DERIVED[derived].model_copy(update={"name": f"tasks.{task.name}.{derived}"})
    if not task.metrics:
        yield Metric(name=f"tasks.{task.name}.*", unit="score", better="neither")


def _informed(each: Measured, known: dict[str, Measurement]) -> Measured:
    """With the number of documents of the earlier run, where the plan does not tell one."""
    found = known.get(each.metric.name)
    if each.documents is not None or found is None:
        return each
    return Measured(each.metric, each.suite, found.clusters, each.units)
