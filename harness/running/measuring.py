"""From the tables of a pair to its measurements. No model is touched here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

from harness.measures import Measure
from harness.probes import PassProbe
from harness.records import Measurement, Skipped, Slice, SuiteSpec
from harness.running.pairs import Pair
from harness.running.stopwatch import timed
from harness.slices import asked_for, measure_slices


def measure(pair: Pair, suites: Sequence[SuiteSpec]) -> None:
    """Turn tables into measurements. A measure that raises is a failure of the run, and the others still count."""
    with timed(pair.observed.seconds, "measure"):
        for suite in suites:
            for measure in cast(Sequence[Measure], suite.measures):
                found = _measure_one(pair, suite, measure)
                if len(suites) > 1:
                    found = [_of_suite(suite, m) for m in found]
                pair.observed.measurements += [m for m in found if isinstance(m, Measurement)]
                pair.observed.skipped += [m for m in found if isinstance(m, Skipped)]
            slices = _slices(pair, suite)
            if len(suites) > 1:
                slices = [_relabelled(suite, part) for part in slices]
            pair.observed.slices += slices


M = TypeVar("M", Measurement, Skipped, Measurement | Skipped)


def _of_suite(suite: SuiteSpec, found: M) -> M:
    return found.model_copy(update={"labels": found.labels | {"suite": suite.name}})


def _relabelled(suite: SuiteSpec, part: Slice) -> Slice:
    measurements = tuple(_of_suite(suite, m) for m in part.measurements)
    return part.model_copy(
        update={"measurements": measurements, "skipped": tuple(_of_suite(suite, s) for s in part.skipped)}
    )


def _slices(pair: Pair, suite: SuiteSpec) -> list[Slice]:
    """The parts of the documents that rules of the plan name; none where tokens cannot be compared."""
    wanted = asked_for(pair.observed.plan.gates)
    documents = pair.store.read(suite.name, "documents") if wanted and suite.name in pair.same_ids else None
    if documents is None:
        return []
    measures = cast(Sequence[Measure], suite.measures)
    return measure_slices(
        suite.name, documents, measures, lambda m: pair.store.read(suite.name, m.table, m.columns), wanted
    )


def _measure_one(pair: Pair, suite: SuiteSpec, measure: Measure) -> Sequence[Measurement | Skipped]:
    needs_ids = any(isinstance(p, PassProbe) and p.kind == measure.table for p in suite.probes)
    if needs_ids and suite.name not in pair.same_ids:
        reason = "the documents have other token ids under the variant's tokenizer, so tokens cannot be compared"
        return _all_skipped(measure, reason)
    table = pair.store.read(suite.name, measure.table, measure.columns)
    if table is None or table.empty:
        return _all_skipped(measure, f"the probe {measure.table} left no rows")
    try:
        return measure.measure(table)
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything; it must cost the verdict, not the run
        reason = f"measure {measure.kind} failed: {type(error).__name__}: {error}"
        pair.observed.failures.append(reason)
        return _all_skipped(measure, reason)


def _all_skipped(measure: Measure, reason: str) -> list[Skipped]:
    return [Skipped(measure=metric.name, reason=reason) for metric in measure.produces()]
