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


def read_apart(suite: SuiteSpec) -> tuple[str, ...]:
    """The tables that are read instead of those of tokens where the sides have other token ids."""
    found = [measure.apart() for measure in cast(Sequence[Measure], suite.measures) if _compares_tokens(suite, measure)]
    return tuple(dict.fromkeys(instead.table for instead in found if instead is not None))


def _compares_tokens(suite: SuiteSpec, measure: Measure) -> bool:
    return any(isinstance(probe, PassProbe) and probe.kind == measure.table for probe in suite.probes)


def _slices(pair: Pair, suite: SuiteSpec) -> list[Slice]:
    """The parts of the documents that rules of the plan name."""
    wanted = asked_for(pair.observed.plan.gates)
    documents = pair.store.read(suite.name, "documents") if wanted else None
    if documents is None:
        return []
    asked = cast(Sequence[Measure], suite.measures)
    served = [each.apart() if suite.name in pair.apart and _compares_tokens(suite, each) else each for each in asked]
    measures = [measure for measure in served if measure is not None]
    return measure_slices(
        suite.name, documents, measures, lambda m: pair.store.read(suite.name, m.table, m.columns), wanted
    )


def _measure_one(pair: Pair, suite: SuiteSpec, measure: Measure) -> Sequence[Measurement | Skipped]:
    reason = pair.apart.get(suite.name, "") if _compares_tokens(suite, measure) else ""
    instead = measure.apart() if reason else measure
    if instead is None:
        return _all_skipped(measure, reason)
    served = {metric.name for metric in instead.produces()}
    lost = [entry for entry in _all_skipped(measure, reason) if entry.measure not in served]
    table = pair.store.read(suite.name, instead.table, instead.columns)
    if table is None or table.empty:
        return [*lost, *_all_skipped(instead, f"the probe {instead.table} left no rows{_unpaired(pair, suite)}")]
    try:
        return [*lost, *instead.measure(table)]
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything; it must cost the verdict, not the run
        reason = f"measure {measure.kind} failed: {type(error).__name__}: {error}"
        pair.observed.failures.append(reason)
        return _all_skipped(measure, reason)


def _unpaired(pair: Pair, suite: SuiteSpec) -> str:
    """Which modules could not be compared, as a reason for what is missing; empty where all could."""
    found = pair.store.read(suite.name, "unpaired")
    if found is None or found.empty:
        return ""
    first = found.iloc[0]
    return f" ({len(found)} modules could not be compared, {first['module']} first: {first['reason']})"


def _all_skipped(measure: Measure, reason: str) -> list[Skipped]:
    return [Skipped(measure=metric.name, reason=reason) for metric in measure.produces()]
