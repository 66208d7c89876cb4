"""Measures turn a table of observations into measurements. One file is one measure.

A measure is a pure function of one table: no model, no file, no clock, no torch. The tables and their columns are
described in ``harness/probes``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.records import Measurement, Metric, Plugin, Skipped

if TYPE_CHECKING:
    import pandas as pd

    from harness.statistics import Intervals


BY_DOCUMENT = ("tokens", "layers")
"""Tables of which the rows of any documents can be taken, as if there were no others."""


class Measure(Plugin):
    """Numbers from one table."""

    family = "measures"

    table: ClassVar[str]
    """The table it reads, which is also the name of the probe that fills it."""
    columns: ClassVar[tuple[str, ...] | None] = None
    """The columns it reads (None: all), so that a large table need not be loaded whole."""
    own_floors: ClassVar[tuple[str, ...]] = ()
    """Metrics whose noise floor it finds itself; those of a pass probe get theirs from the suite's noise_floor."""

    @property
    def by_document(self) -> bool:
        """Whether rows of any documents can be taken from its table, as if there were no others."""
        return self.table in BY_DOCUMENT

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

    @abstractmethod
    def produces(self) -> tuple[Metric, ...]:
        """Every metric this measure can yield with these settings; ``*`` stands for what is known only later."""

    @abstractmethod
    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """The measurements. What cannot be computed leaves a Skipped with the reason.

        Raises MeasureError when the table contradicts the definition of a metric.
        """


class Sampled(Measure):
    """A measure that leaves the choice of intervals to others, so that documents may be looked at while more are drawn.

    Any other measure loses its intervals there, because an ordinary one holds for a number of documents that was fixed
    before they were seen.
    """

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """See Measure.measure: with the ordinary intervals."""
        from harness.statistics import Intervals

        return self.measure_by(table, Intervals())

    @abstractmethod
    def measure_by(self, table: pd.DataFrame, intervals: Intervals) -> Sequence[Measurement | Skipped]:
        """See Measure.measure: every interval is one of ``intervals``."""


BASE = Measure
