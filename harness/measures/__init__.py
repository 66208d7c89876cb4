"""Measures turn a table of observations into measurements. One file is one measure.

A measure is a pure function of one table: no model, no file, no clock, no torch. The tables and their columns are
described in ``harness/probes``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness import plugins
from harness.errors import HarnessError, MeasureError
from harness.records import Measurement, Metric, Plugin, Skipped
from harness.records.metric import find_metric
from harness.records.patterns import could_match

if TYPE_CHECKING:
    import pandas as pd

    from harness.data.task_sizes import TaskSize
    from harness.records import ItemsSpec
    from harness.statistics import Intervals


@dataclass(frozen=True)
class ExtraWork:
    """Work of one model in addition to the shared pass.

    items: of tasks. at_once: of them in a batch. calls: timing blocks. generated: tokens of generations, prompts
    included. complete: whether every number is known; unknown ones count as 0.
    """

    items: int = 0
    at_once: int = 0
    calls: int = 0
    generated: int = 0
    complete: bool = True


class Measure(Plugin):
    """Computes measurements from one table."""

    family = "measures"
    by_name = True

    table: ClassVar[str]
    """The table that the measure reads, which is also the name of the probe that writes it."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """Every metric that the measure can yield, with any settings; ``*`` stands for parts of a name that settings or
    files determine. If several patterns match a name, the first one counts."""
    columns: ClassVar[tuple[str, ...] | None] = None
    """The columns that the measure reads (None: all), so that a large table need not be loaded completely."""
    by_document: ClassVar[bool] = False
    """Whether the table has rows per document and can be restricted to any subset of documents. Required for rules on
    slices and for sequential sampling."""
    by_item: ClassVar[bool] = False
    """Whether the table has rows per task and item (columns ``task``, ``doc_id`` and ``doc_hash``), of which any can be
    left out. Required for items that are drawn until their rules are decided."""
    over_modules: ClassVar[tuple[str, ...]] = ()
    """Metrics with one value over all modules that both models have: Skipped if some could not be compared."""
    per_module: ClassVar[tuple[str, ...]] = ()
    """Metrics with one value for each such module: if some could not be compared, one Skipped says so beside them."""
    of_weights: ClassVar[tuple[str, ...]] = ()
    """Metrics that compare the weights of modules: Skipped where the variant's engine gives no access to them."""
    own_floors: ClassVar[tuple[str, ...]] = ()
    """Metrics whose noise floor the measure determines itself; those of a pass probe get theirs from the suite's
    noise_floor."""

    @classmethod
    def missing(cls) -> tuple[str, ...]:
        """See Plugin.missing; a measure must declare its metrics, or derive them from its settings."""
        tells = bool(cls.metrics) or cls.produces is not Measure.produces
        return (*super().missing(), *(() if tells else ("metrics",)))

    def metrics_by_document(self) -> list[str]:
        """The metrics that are measured again at every interim look and on every slice; empty unless by_document."""
        return [metric.name for metric in self.produces()] if self.by_document else []

    def item_sampling(self) -> ItemsSpec | None:
        """How items of tasks are drawn until the rules are decided; None if all of them are scored."""
        return None

    def draws(self, task: str) -> bool:
        """Whether it measures what is drawn: the items of a task, or the documents (no task)."""
        return self.by_item if task else self.by_document

    def probe_settings(self) -> dict[str, Any]:
        """Settings that the probe must have for this measure; the plan refuses two measures that contradict each
        other."""
        return {}

    def with_target(self, target: str | None) -> Measure:
        """This measure for a variant whose file names ``target`` (see ``harness.numerics.hardware``); by default the
        measure itself."""
        return self

    def get_substitute(self) -> Measure | None:
        """The measure to use instead if the two sides have different token ids; None: nothing.

        Called on measures whose probe compares tokens. The table of the returned measure is written by the probe of
        that name, and it yields metrics of this measure under their names.
        """
        return None

    def obstacle(self) -> str:
        """Why these settings make every metric Skipped, as far as known before the run; empty if they do not.

        The plan refuses blocking rules on such a measure before a model is loaded.
        """
        return ""

    def task_sizes(self) -> tuple[TaskSize, ...]:
        """The tasks that the measure scores, with their sizes as far as files tell; empty if it scores none."""
        return ()

    def code_folders(self) -> tuple[str, ...]:
        """Folders and files that name Python code of the user, which this measure executes; the plan says so."""
        return ()

    def work(self, documents: int | None) -> ExtraWork:
        """The work of each model for this measure, in a suite of ``documents`` documents; feeds the time forecast."""
        sizes = [task.items for task in self.task_sizes()]
        return ExtraWork(items=sum(size or 0 for size in sizes), complete=None not in sizes)

    def least_work(self, documents: int | None) -> ExtraWork:
        """The work if every rule is decided at the first look, in a suite that then has ``documents`` documents."""
        return self.work(documents)

    def sample_size(self, documents: int | None) -> int | None:
        """How many independent observations (``Metric.units``) the metrics rest on, in a suite of ``documents``
        documents.

        None: known only after the run; 0: the metrics are counted, not sampled.
        """
        return documents

    def produces(self) -> tuple[Metric, ...]:
        """Every metric that the measure yields with these settings; ``*`` stands for what is known only after the
        run."""
        return self.metrics

    @abstractmethod
    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Compute the measurements. A metric that cannot be computed becomes a Skipped with the reason.

        Raises MeasureError when the table contradicts the definition of a metric.
        """

    def measure_at(self, table: pd.DataFrame, intervals: Intervals | None) -> Sequence[Measurement | Skipped]:
        """Compute the measurements at an interim look, with ``intervals`` that hold at all looks simultaneously; None:
        as ``measure``.

        A measure that does not support other intervals reports none, because an ordinary interval is valid only for a
        number of documents that was fixed in advance.
        """
        results = self.measure(table)
        return results if intervals is None else [_without_interval(entry) for entry in results]


class Sampled(Measure):
    """A measure that accepts a method of intervals, so that it keeps them at interim looks."""

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """See Measure.measure: with the ordinary intervals."""
        from harness.statistics import Intervals

        return self.measure_by(table, Intervals())

    @abstractmethod
    def measure_by(self, table: pd.DataFrame, intervals: Intervals) -> Sequence[Measurement | Skipped]:
        """See Measure.measure: every interval is computed with ``intervals``."""

    def measure_at(self, table: pd.DataFrame, intervals: Intervals | None) -> Sequence[Measurement | Skipped]:
        """See Measure.measure_at: all intervals are kept."""
        return self.measure(table) if intervals is None else self.measure_by(table, intervals)


def _without_interval(entry: Measurement | Skipped) -> Measurement | Skipped:
    if isinstance(entry, Skipped) or entry.basis == "counted":
        return entry
    why = (
        "no interval: the suite stopped by sequential sampling, and this measure cannot correct its intervals for that"
    )
    ends = dict.fromkeys(("low", "high", "variant_low", "variant_high"))
    return entry.model_copy(update={**ends, "method": f"{entry.method}; {why}"})


def hold_to_declared(measure: Measure, found: Sequence[Measurement | Skipped]) -> list[Measurement | Skipped]:
    """The results of a measure under the names that it declares.

    Raises MeasureError for a measurement whose better direction, or whose value for equal sides, is not the declared
    one: a margin would lie on the wrong side.
    """
    declared = collect_metrics([measure])
    for entry in found:
        metric = find_metric(entry.name, declared) if isinstance(entry, Measurement) else None
        if isinstance(entry, Measurement) and metric is not None:
            told, known = _direction(entry), _direction(metric)
            if told != known and metric.better != "neither":
                raise MeasureError(f"{entry.name}: found {told}, expected {known}, as the measure declares it")
    return _name_skipped(measure, found)


def _direction(entry: Measurement | Metric) -> str:
    return f"better: {entry.better}, neutral: {'infinity' if entry.infinite_neutral else entry.neutral}"


def _name_skipped(measure: Measure, found: Sequence[Measurement | Skipped]) -> list[Measurement | Skipped]:
    """Replace a Skipped under an undeclared name by one for every declared metric that was not measured.

    Otherwise a rule could pass because its metric is missing under another name.
    """
    declared = [metric.name for metric in (*measure.metrics, *measure.produces())]
    have = {entry.name for entry in found if isinstance(entry, Measurement)}
    named: list[Measurement | Skipped] = []
    for entry in found:
        if isinstance(entry, Measurement) or any(could_match(name, entry.measure) for name in declared):
            named.append(entry)
        else:
            lost = (metric.name for metric in measure.produces() if metric.name not in have)
            named += [entry.model_copy(update={"measure": name}) for name in lost]
    return named


def skip_uncompared(
    measure: Measure, found: Sequence[Measurement | Skipped], uncompared: Mapping[str, str]
) -> list[Measurement | Skipped]:
    """The results of a measure where some modules could not be compared.

    uncompared: their names with the reasons. A rule about all modules must not pass on those that could be paired.
    """
    if not uncompared:
        return list(found)
    module, reason = next(iter(uncompared.items()))
    more = f", and {len(uncompared) - 1} more" if len(uncompared) > 1 else ""
    reason = f"{module}{more} could not be compared: {reason}"
    kept = [entry for entry in found if not (isinstance(entry, Measurement) and entry.name in measure.over_modules)]
    lost = (*measure.per_module, *(name for name in measure.over_modules if not _is_skipped(name, found)))
    return [*kept, *(Skipped(measure=name, reason=reason, labels={"module": module}) for name in lost)]


def _is_skipped(name: str, found: Sequence[Measurement | Skipped]) -> bool:
    return any(isinstance(entry, Skipped) and entry.measure == name for entry in found)


def collect_metrics(measures: Iterable[Measure]) -> tuple[Metric, ...]:
    """Every metric that the measures declare, each name once: first those known from settings, then patterns."""
    metrics: dict[str, Metric] = {}
    for measure in measures:
        produced = measure.produces()
        named = (metric for metric in produced if "*" not in metric.name)
        for metric in (*named, *measure.metrics, *produced):
            metrics.setdefault(metric.name, metric)
    return tuple(metrics.values())


def load_measures() -> list[tuple[type[Measure] | None, tuple[Metric, ...]]]:
    """Every installed measure with its metrics; None, and ``<measure>.*``, for one that does not load or derives its
    metrics from settings."""
    found: list[tuple[type[Measure] | None, tuple[Metric, ...]]] = []
    for kind in plugins.names(Measure):
        try:
            cls = plugins.load(Measure, kind)
            found.append((cls, cls.metrics or cls().produces()))
        except (ValueError, HarnessError, ImportError):
            found.append((None, (Metric(name=f"{kind}.*", unit="", better="neither"),)))
    return found


def load_metrics() -> list[Metric]:
    """Every metric of every installed measure."""
    return [metric for _, metrics in load_measures() for metric in metrics]


BASE = Measure
