"""Measures turn a table of observations into measurements. One file is one measure.

A measure is a pure function of one table: no model, no file, no clock, no torch. The tables and their columns are
described in ``harness/probes``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness import plugins
from harness.errors import HarnessError
from harness.records import Measurement, Metric, Plugin, Skipped
from harness.records.patterns import could_match

if TYPE_CHECKING:
    import pandas as pd

    from harness.statistics import Intervals


class Measure(Plugin):
    """Numbers from one table."""

    family = "measures"

    table: ClassVar[str]
    """The table it reads, which is also the name of the probe that fills it."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """Every metric that it can yield, with any settings; ``*`` stands for what settings or files tell. Of several that
    cover a name the first one counts."""
    columns: ClassVar[tuple[str, ...] | None] = None
    """The columns it reads (None: all), so that a large table need not be loaded whole."""
    by_document: ClassVar[bool] = False
    """Whether its table has rows of single documents, of which any can be taken as if there were no others. Only then
    do rules hold on slices, and documents may be drawn until the rules are decided."""
    own_floors: ClassVar[tuple[str, ...]] = ()
    """Metrics whose noise floor it finds itself; those of a pass probe get theirs from the suite's noise_floor."""

    @classmethod
    def missing(cls) -> tuple[str, ...]:
        """See Plugin.missing; a measure must declare its metrics, or tell them by its settings."""
        tells = bool(cls.metrics) or cls.produces is not Measure.produces
        return (*super().missing(), *(() if tells else ("metrics",)))

    def metrics_by_document(self) -> list[str]:
        """The metrics that are measured again at every interim look and on every slice; none where not by_document."""
        return [metric.name for metric in self.produces()] if self.by_document else []

    def probe_settings(self) -> dict[str, Any]:
        """Settings the probe must have for this measure; the plan refuses two measures that contradict each other."""
        return {}

    def aimed(self, target: str | None) -> Measure:
        """This measure for a variant whose file names ``target`` (see ``harness.hardware``); most do not mind."""
        return self

    def apart(self) -> Measure | None:
        """What can be measured instead where both sides have token ids of their own; None: nothing.

        Asked for measures whose probe compares tokens. Its table is filled by the probe of that name, and it produces
        metrics of this measure under their names.
        """
        return None

    def obstacle(self) -> str:
        """Why these settings leave everything Skipped, as far as it is known beforehand; empty: they do not.

        The plan refuses blocking rules on such a measure before a model is loaded.
        """
        return ""

    def sample_size(self, documents: int | None) -> int | None:
        """How many independent observations (``Metric.units``) its numbers rest on, in a suite of so many documents.

        None: only the run tells; 0: they are counted, not sampled.
        """
        return documents

    def produces(self) -> tuple[Metric, ...]:
        """Every metric that it yields with these settings; ``*`` stands for what is known only later."""
        return self.metrics

    @abstractmethod
    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """The measurements. What cannot be computed leaves a Skipped with the reason.

        Raises MeasureError when the table contradicts the definition of a metric.
        """

    def measure_at(self, table: pd.DataFrame, intervals: Intervals | None) -> Sequence[Measurement | Skipped]:
        """The measurements at an interim look, whose ``intervals`` hold at all looks together; None: as ``measure``.

        A measure that cannot choose its intervals loses them, because an ordinary one holds for a number of documents
        that was fixed before they were seen.
        """
        found = self.measure(table)
        return found if intervals is None else [_without_interval(entry) for entry in found]


class Sampled(Measure):
    """A measure that leaves the choice of intervals to others, so that it keeps them at interim looks."""

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """See Measure.measure: with the ordinary intervals."""
        from harness.statistics import Intervals

        return self.measure_by(table, Intervals())

    @abstractmethod
    def measure_by(self, table: pd.DataFrame, intervals: Intervals) -> Sequence[Measurement | Skipped]:
        """See Measure.measure: every interval is one of ``intervals``."""

    def measure_at(self, table: pd.DataFrame, intervals: Intervals | None) -> Sequence[Measurement | Skipped]:
        """See Measure.measure_at: nothing is lost."""
        return self.measure(table) if intervals is None else self.measure_by(table, intervals)


def _without_interval(entry: Measurement | Skipped) -> Measurement | Skipped:
    if isinstance(entry, Skipped) or entry.basis == "counted":
        return entry
    why = "no interval: documents were drawn until the rules were decided, and this measure cannot correct for that"
    ends = dict.fromkeys(("low", "high", "variant_low", "variant_high"))
    return entry.model_copy(update={**ends, "method": f"{entry.method}; {why}"})


def name_skipped(measure: Measure, found: Sequence[Measurement | Skipped]) -> list[Measurement | Skipped]:
    """Results of a measure in which a Skipped under no name that it declares stands for all that it did not measure.

    Else a rule could pass because the metric that it asks for went missing under another name.
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


def declared_metrics(measures: Iterable[Measure]) -> tuple[Metric, ...]:
    """Every metric that the measures declare, each name once: what their settings tell, then patterns."""
    found: dict[str, Metric] = {}
    for measure in measures:
        produced = measure.produces()
        named = (metric for metric in produced if "*" not in metric.name)
        for metric in (*named, *measure.metrics, *produced):
            found.setdefault(metric.name, metric)
    return tuple(found.values())


def installed_measures() -> list[tuple[type[Measure] | None, tuple[Metric, ...]]]:
    """Every installed measure with its metrics; None, and ``<measure>.*``, for one that does not load or tell."""
    found: list[tuple[type[Measure] | None, tuple[Metric, ...]]] = []
    for kind in plugins.names(Measure):
        try:
            cls = plugins.load(Measure, kind)
            found.append((cls, cls.metrics or cls().produces()))
        except (ValueError, HarnessError, ImportError):
            found.append((None, (Metric(name=f"{kind}.*", unit="", better="neither"),)))
    return found


def installed_metrics() -> list[Metric]:
    """Every metric of every installed measure."""
    return [metric for _, metrics in installed_measures() for metric in metrics]


BASE = Measure
