"""Computes the measurements of a pair from its tables. No model is used here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from harness.concluding.extra_ids import explain_used
from harness.concluding.noise_floor import Key, add_floors, floors, read_perturbed
from harness.concluding.pair import Pair
from harness.concluding.reference_check import COLUMNS, explain_weakness
from harness.errors import FailureClass
from harness.measures import Measure, hold_to_declared, skip_uncompared
from harness.planning.sampling.clusters import label_clusters, name_documents
from harness.planning.sampling.looks import Look
from harness.planning.sampling.slices import measure_slices, slice_patterns
from harness.planning.specs import GateSpec, SuiteSpec
from harness.records import Measurement, NoiseFloor, Note, Skipped, Slice
from harness.records.own_rules import MEASURES_RUN, REFERENCE_PREDICTS
from harness.system.foreign import guard
from harness.system.stopwatch import measure_time
from harness.tables.access import Tables

if TYPE_CHECKING:
    import pandas as pd


LATER = ("alone", "artifact")
"""When probes run that nothing is asked of once documents have decided."""


def measure(pair: Pair, suites: Sequence[SuiteSpec], stopped: str = "") -> None:
    """Compute the measurements. A measure that raises is a failure of the run; the others still count.

    stopped: why nothing was observed after the passes; empty if everything was.
    """
    with measure_time(pair.observed.seconds, "measure"):
        for suite in suites:
            _check_reference(pair, suite)
            measures = suite.measures
            apart = suite.name in pair.facts.token_mismatches
            otherwise = None if apart else read_perturbed(pair.store, suite.name)
            noise = floors(otherwise, measures) if otherwise else {}
            for measure in measures:
                failures, looks = pair.observed.broken[MEASURES_RUN], pair.looks.get(suite.name, ())
                raw: Sequence[Measurement | Skipped]
                if stopped and _comes_later(pair, suite, measure):
                    raw = [each.model_copy(update={"cut_short": True}) for each in _skip_all(measure, stopped)]
                else:
                    raw = run_measure(pair, suite, measure, failures, looks)
                results: Sequence[Measurement | Skipped] = add_floors(raw, noise)
                if len(suites) > 1:
                    results = [_label_suite(suite, m) for m in results]
                pair.observed.measurements += [m for m in results if isinstance(m, Measurement)]
                pair.observed.skipped += [m for m in results if isinstance(m, Skipped)]
            look = next((each for each in pair.looks.get(suite.name, ()) if not each.task), None)
            slices = measure_parts(pair, suite, pair.observed.plan.gates, look, noise)
            if len(suites) > 1:
                slices = [_relabel(suite, part) for part in slices]
            pair.observed.slices += slices


def _comes_later(pair: Pair, suite: SuiteSpec, measure: Measure) -> bool:
    """Whether a measure reads what is observed after the passes."""
    apart = suite.name in pair.facts.token_mismatches and _compares_tokens(suite, measure)
    return apart or any(probe.kind == measure.table and probe.runs in LATER for probe in suite.probes)


def _check_reference(pair: Pair, suite: SuiteSpec) -> None:
    """Note whether the reference predicts the texts of a suite, if its tokens were observed."""
    if suite.name in pair.facts.token_mismatches or all(probe.kind != "tokens" for probe in suite.probes):
        return
    tokens = pair.store.read(suite.name, "tokens", COLUMNS)
    found = explain_weakness(tokens, pair.facts.vocabulary) if tokens is not None else ""
    if not found:
        return
    reason, text = pair.observed.plan.weak_reference, f"suite {suite.name}: {found}"
    if reason:
        text = f"{text}; that is meant, says the variant file: {reason}"
        pair.observed.notes.append(Note(topic="weak reference", text=text, level="warn"))
    else:
        pair.observed.broken[REFERENCE_PREDICTS].append(
            f"{text}; measure with a reference that was trained on such texts, or say in the variant file why that is "
            "meant (weak_reference: the reason)"
        )


M = TypeVar("M", Measurement, Skipped, Measurement | Skipped)


def _label_suite(suite: SuiteSpec, found: M) -> M:
    return found.model_copy(update={"labels": found.labels | {"suite": suite.name}})


def _relabel(suite: SuiteSpec, part: Slice) -> Slice:
    measurements = tuple(_label_suite(suite, m) for m in part.measurements)
    return part.model_copy(
        update={"measurements": measurements, "skipped": tuple(_label_suite(suite, s) for s in part.skipped)}
    )


def read_apart(suite: SuiteSpec) -> tuple[str, ...]:
    """The measures that replace token-based ones if the sides have different token ids."""
    substitutes = [measure.get_substitute() for measure in suite.measures if _compares_tokens(suite, measure)]
    return tuple(dict.fromkeys(instead.table for instead in substitutes if instead is not None))


def _compares_tokens(suite: SuiteSpec, measure: Measure) -> bool:
    return any(probe.compares_tokens and probe.kind == measure.table for probe in suite.probes)


def _add_floors(part: Slice, noise: Mapping[Key, NoiseFloor]) -> Slice:
    """A measurement of a slice with the noise floor of the whole suite, which was measured on about as few
    documents."""
    results = add_floors(part.measurements, noise)
    return part.model_copy(update={"measurements": tuple(m for m in results if isinstance(m, Measurement))})


def measure_parts(
    pair: Pair, suite: SuiteSpec, gates: Sequence[GateSpec], look: Look | None, noise: Mapping[Key, NoiseFloor]
) -> list[Slice]:
    """The slices of the documents that rules of the gates name."""
    wanted = slice_patterns(gates)
    documents = pair.store.read(suite.name, "documents") if wanted else None
    asked = [each for each in suite.measures if not explain_used(pair.store, suite.name, each.table)]
    if documents is None:
        return []
    served = [
        each.get_substitute() if suite.name in pair.facts.token_mismatches and _compares_tokens(suite, each) else each
        for each in asked
    ]
    measures = [measure for measure in served if measure is not None]
    uncompared = read_uncompared(pair.store, suite.name)
    parts = measure_slices(
        suite.name,
        documents,
        measures,
        lambda m: pair.store.read(suite.name, m.table, m.columns),
        wanted,
        look,
        uncompared,
    )
    return [_add_floors(part, noise) for part in parts]


def run_measure(
    pair: Pair,
    suite: SuiteSpec,
    measure: Measure,
    failures: list[str],
    looks: Sequence[Look] = (),
    ordinary: bool = False,
) -> Sequence[Measurement | Skipped]:
    """The results of a measure; one that raises leaves its reason in ``failures``, and its metrics are Skipped.

    looks: the interim looks of sequential sampling: only their documents, or items of tasks, are used, with their
    intervals. ordinary: use these, but the intervals of a fixed sample size.
    """
    if used := explain_used(pair.store, suite.name, measure.table):
        return _skip_all(measure, used)
    reason = pair.facts.token_mismatches.get(suite.name, "") if _compares_tokens(suite, measure) else ""
    instead = measure.get_substitute() if reason else measure
    if instead is None:
        return _skip_all(measure, reason, failure="comparability")
    if instead.table in pair.facts.unsupported:
        return _skip_all(measure, pair.facts.unsupported[instead.table], unsupported=True)
    served = {metric.name for metric in instead.produces()}
    lost = [entry for entry in _skip_all(measure, reason, failure="comparability") if entry.measure not in served]
    table = pair.store.read(suite.name, instead.table, instead.columns)
    documents = pair.store.read(suite.name, "documents") if instead.by_document else None
    own = any(probe.reads == "nothing" and probe.kind == instead.table for probe in suite.probes)
    parts = [] if table is None else _split_by_look(instead, table, documents, looks)
    if all(rows.empty for _, rows in parts):
        return [
            *lost,
            *_skip_all(instead, f"the probe {instead.table} left no rows{_explain_unpaired(pair, suite)}"),
        ]
    try:
        found: list[Measurement | Skipped] = []
        with guard(f"the measure {measure.kind}"):
            for look, rows in parts:
                ends = None if look is None or ordinary or (own and not look.task) else look.intervals()
                found += hold_to_declared(instead, instead.measure_at(rows, ends))
        measured = skip_uncompared(instead, name_documents(found, documents), read_uncompared(pair.store, suite.name))
        return [*lost, *_skip_hidden(instead, measured, pair.facts.hidden_weights)]
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything; it must cost the verdict, not the run
        reason = f"measure {measure.kind} failed: {type(error).__name__}: {error}"
        failures.append(reason)
        return _skip_all(measure, reason)


def _split_by_look(
    measure: Measure, table: pd.DataFrame, documents: pd.DataFrame | None, looks: Sequence[Look]
) -> list[tuple[Look | None, pd.DataFrame]]:
    """The rows that a measure reads with the look that they were drawn for: one part, or one for each drawn task."""
    own = [look for look in looks if bool(look.task) == measure.by_item]
    if measure.by_item:
        return [(look, look.rows(table)) for look in own] or [(None, table)]
    look = next(iter(own), None)
    if not measure.by_document:
        return [(look, table)]
    return [(look, label_clusters(look.rows(table) if look else table, documents))]


def read_uncompared(store: Tables, suite: str) -> dict[str, str]:
    """Modules that a shared pass could not compare although both models should have them, with the reason."""
    found = store.read(suite, "unpaired")
    if found is None:
        return {}
    rows = found[~found["expected"]]
    return dict(zip(rows["module"], rows["reason"], strict=True))


def _explain_unpaired(pair: Pair, suite: SuiteSpec) -> str:
    """Which modules could not be compared, as a reason for missing metrics; empty if all could."""
    unpaired = pair.store.read(suite.name, "unpaired")
    if unpaired is None or unpaired.empty:
        return ""
    first = unpaired.iloc[0]
    return f" ({len(unpaired)} modules could not be compared, {first['module']} first: {first['reason']})"


def _skip_hidden(measure: Measure, found: Sequence[Measurement | Skipped], reason: str) -> list[Measurement | Skipped]:
    """The results of a measure where weights cannot be compared for ``reason``; all of them if it is empty."""
    if not reason:
        return list(found)
    kept = [each for each in found if _name(each) not in measure.of_weights]
    return [*kept, *(Skipped(measure=name, reason=reason, unsupported=True) for name in measure.of_weights)]


def _name(found: Measurement | Skipped) -> str:
    return found.name if isinstance(found, Measurement) else found.measure


def _skip_all(
    measure: Measure, reason: str, unsupported: bool = False, failure: FailureClass | None = None
) -> list[Skipped]:
    return [
        Skipped(measure=metric.name, reason=reason, unsupported=unsupported, failure=failure)
        for metric in measure.produces()
    ]
