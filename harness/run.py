"""Run: load the reference once, make its variants, drive the probes, and measure what they left behind.

Every plan of a group names the same reference and the same suites, so each batch goes through the reference once
however many variants there are. A variant that cannot be made or observed is reported and leaves the others alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from harness.documents import EncodedDocument, documents_sha256, duplicates, encode, read_documents
from harness.environment import describe_environment
from harness.errors import DataError, HarnessError
from harness.hardware import fit as hardware
from harness.lockstep.driver import shared_pass
from harness.measures import Measure
from harness.models.calibration_data import CalibrationDocuments, read_calibration, with_calibration
from harness.models.loading import LoadedModel, load, make_variant, verify_unchanged
from harness.overlap import WINDOW
from harness.planning.composition import remarks
from harness.probes import OwnProbe, PassProbe, Progress
from harness.records import Environment, Identity, Measurement, Note, Plan, Skipped, Slice, SuiteSpec
from harness.slices import asked_for, measure_slices
from harness.tables.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from harness.backends import Backend

Documents = dict[str, Sequence[EncodedDocument]]
"""Encoded documents by suite name."""
Calibrations = dict[str, CalibrationDocuments]
"""Calibration documents that were read already, by what was asked for."""
CALIBRATION_PROBE = "calibration_data"
"""The probe that compares activations with those on the calibration documents."""


@dataclass
class Observed:
    """What is known about one variant after its run: everything that run.json needs except the verdicts."""

    plan: Plan
    reference: Identity
    variant: Identity
    environment: Environment
    data_key: str
    measurements: list[Measurement] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    """What happened to the tables of an earlier, unfinished run: for the terminal, since it changes no number."""
    failures: list[str] = field(default_factory=list)
    """Measures that raised: the run cannot be judged, whatever the rules say."""
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _Pair:
    """One variant beside the reference while the run lasts."""

    variant: LoadedModel
    store: Store
    observed: Observed
    same_ids: frozenset[str]
    """Suites whose documents have the same token ids on both sides, so that tokens can be compared."""


def group_plans(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Plans that can share one reference pass: same reference, same suites. In order of first appearance.

    Settings of measures may differ, for every variant is measured by its own plan.
    """
    groups: dict[str, list[Plan]] = {}
    for plan in plans:
        suites = [suite.model_dump(mode="json", exclude={"measures"}) for suite in plan.suites]
        shared = json.dumps([plan.reference.model_dump(mode="json"), suites], sort_keys=True)
        groups.setdefault(shared, []).append(plan)
    return list(groups.values())


def run_group(
    plans: Sequence[Plan], folders: Sequence[Path], progress: Progress
) -> list[Observed | HarnessError]:
    """Observe and measure every variant of one group of plans (see group_plans); folders are theirs, in order.

    A variant that fails leaves its HarnessError in its place; a failure of the reference is raised.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "load reference"):
        reference = load(plans[0].reference, Path(plans[0].reference.model).name)
        documents = {suite.name: _encode(suite, reference) for suite in plans[0].suites}
    results: list[Observed | HarnessError] = []
    pairs: list[_Pair] = []
    calibrations: Calibrations = {}
    for done, (plan, folder) in enumerate(zip(plans, folders, strict=True)):
        progress.step("make variants", done, len(plans))
        try:
            pair = _make_pair(plan, folder, reference, documents, calibrations, dict(seconds))
        except HarnessError as error:
            results.append(error)
            continue
        pairs.append(pair)
        results.append(pair.observed)
    progress.step("make variants", len(plans), len(plans))
    try:
        failed = _observe(plans[0].suites, documents, reference, pairs, progress)
        verify_unchanged(reference)
        for pair in pairs:
            if id(pair) in failed:
                continue
            try:
                verify_unchanged(pair.variant)
            except HarnessError as error:
                failed[id(pair)] = error
            else:
                _measure(pair, pair.observed.plan.suites)
    finally:
        for pair in pairs:
            pair.store.close()
    by_observed = {id(pair.observed): failed.get(id(pair)) for pair in pairs}
    return [by_observed.get(id(result)) or result for result in results]


def _encode(suite: SuiteSpec, model: LoadedModel) -> Sequence[EncodedDocument]:
    spec = suite.documents
    if spec is None:
        return ()
    raw = read_documents(spec.data, spec.max, spec.text_field, spec.split_on, spec.seed)
    encoded = encode(raw, model.tokenizer, spec, _vocabulary(model))
    _check_positions(suite, encoded, model)
    return encoded


def _check_positions(suite: SuiteSpec, encoded: Sequence[EncodedDocument], model: LoadedModel) -> None:
    """Raise DataError for documents beyond the positions that the model was made for: it fails there, or guesses."""
    positions = getattr(model.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(document.ids) for document in encoded if not document.skipped), default=0)
    if isinstance(positions, int) and longest > positions:
        raise DataError(
            f"{suite.source}: suite {suite.name} has documents of up to {longest} tokens, wanted at most the "
            f"{positions} positions of {model.name}; give a suite with documents: {{context: {positions}}}"
        )


def _vocabulary(model: LoadedModel) -> int:
    """How many token ids the model has an embedding for."""
    weight = cast("Tensor", model.model.get_input_embeddings().weight)
    return weight.shape[0]


def _calibration(plan: Plan, reference: LoadedModel, known: Calibrations) -> CalibrationDocuments | None:
    """The calibration documents, encoded once for all variants that name the same; None where no step looks at them.

    Raises DataError.
    """
    spec = plan.calibration
    if spec is None or not any(step.calibrates for step in cast("Sequence[Backend]", plan.variant.compress)):
        return None
    key = spec.model_dump_json()
    if key not in known:
        known[key] = read_calibration(spec, reference)
    return known[key]


def _make_pair(
    plan: Plan,
    folder: Path,
    reference: LoadedModel,
    documents: Documents,
    calibrations: Calibrations,
    seconds: dict[str, float],
) -> _Pair:
    with _timed(seconds, "make variant"):
        fitted_to = _calibration(plan, reference, calibrations)
        variant = make_variant(plan, reference, fitted_to.ids if fitted_to else ())
        if fitted_to:
            watch = any(probe.kind == CALIBRATION_PROBE for suite in plan.suites for probe in suite.probes)
            variant = with_calibration(variant, fitted_to, watch)
    for suite in plan.suites:
        _check_positions(suite, documents[suite.name], variant)
    environment = describe_environment()
    hashes = {name: documents_sha256(encoded) for name, encoded in documents.items()}
    same_ids = frozenset(
        suite.name
        for suite in plan.suites
        if variant.identity.tokenizer_sha256 == reference.identity.tokenizer_sha256
        or documents_sha256(_encode(suite, variant)) == hashes[suite.name]
    )
    key = _data_key(plan, reference.identity, variant.identity, environment, hashes)
    store = Store(folder / "tables", key)
    observed = Observed(plan, reference.identity, variant.identity, environment, key, seconds=seconds)
    observed.messages += store.messages
    observed.notes += [*reference.notes, *variant.notes, *_document_notes(plan.suites, documents)]
    observed.notes += remarks(cast("Sequence[Backend]", plan.variant.compress), plan.calibration is not None)
    if fitted_to:
        observed.notes += _overlap_notes(fitted_to, documents)
    if plan.target is not None:
        observed.notes += hardware.notes(plan.target, variant.identity)
    if reference.identity.same_as(variant.identity):
        text = "reference and variant are the same bytes: every change is zero by construction"
        observed.notes.append(Note(topic="same model", text=text, level="warn"))
    return _Pair(variant, store, observed, same_ids)


def _data_key(
    plan: Plan, reference: Identity, variant: Identity, environment: Environment, documents: dict[str, str]
) -> str:
    """Hash of everything the tables depend on: both models, the inputs, the probes, and what computes them."""
    content = {
        "reference": reference.model_dump(mode="json", exclude={"source", "name"}),
        "variant": variant.model_dump(mode="json", exclude={"source", "name"}),
        # A step may do what no tensor and no description of a module shows.
        "steps": [{"backend": step.kind, **step.settings()} for step in plan.variant.compress],
        "documents": documents,
        "probes": {
            suite.name: {probe.kind: probe.settings() for probe in suite.probes} for suite in plan.suites
        },
        "inputs": {
            suite.name: {probe.kind: probe.inputs() for probe in suite.probes if isinstance(probe, OwnProbe)}
            for suite in plan.suites
        },
        "environment": environment.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _document_notes(suites: Sequence[SuiteSpec], documents: Documents) -> list[Note]:
    notes = []
    for suite in suites:
        encoded = documents[suite.name]
        found = {
            "cut at the context": sum(document.cut for document in encoded),
            "skipped (nothing to score)": sum(bool(document.skipped) for document in encoded),
            "repeat the text of another": duplicates(encoded),
        }
        for what, count in found.items():
            if count:
                text = f"{count} of {len(encoded)} documents of suite {suite.name} {what}"
                notes.append(Note(topic="documents", text=text))
    return notes


def _overlap_notes(fitted_to: CalibrationDocuments, documents: Documents) -> list[Note]:
    """A warning for every suite that judges on texts that the variant was fitted to."""
    notes = []
    for name, encoded in documents.items():
        scored = [document for document in encoded if not document.skipped]
        known = [document.id for document in scored if fitted_to.seen.shared(document.ids)[0]]
        if known:
            first = ", ".join(known[:3]) + (" …" if len(known) > 3 else "")
            text = (
                f"{len(known)} of {len(scored)} documents of suite {name} share {WINDOW} tokens in a row with the "
                f"calibration documents, or are among them: {first}"
            )
            notes.append(Note(topic="calibration", text=text, level="warn"))
    return notes


def _observe(
    suites: Sequence[SuiteSpec],
    documents: Documents,
    reference: LoadedModel,
    pairs: Sequence[_Pair],
    progress: Progress,
) -> dict[int, HarnessError]:
    """Drive every probe of every suite. Returns the errors of the pairs that failed, by id.

    Several variants are observed together. If that fails, each is observed alone, so that one bad variant
    takes nothing from the others: what was committed before is not computed again.
    """
    if not pairs:
        return {}
    try:
        for suite in suites:
            _observe_suite(suite, documents[suite.name], reference, pairs, progress)
    except HarnessError as error:
        if len(pairs) == 1:
            return {id(pairs[0]): error}
        failed: dict[int, HarnessError] = {}
        for pair in pairs:
            failed |= _observe(suites, documents, reference, [pair], progress)
        return failed
    return {}


def _observe_suite(
    suite: SuiteSpec,
    documents: Sequence[EncodedDocument],
    reference: LoadedModel,
    pairs: Sequence[_Pair],
    progress: Progress,
) -> None:
    seconds: dict[str, float] = {}
    pass_probes = [probe for probe in suite.probes if isinstance(probe, PassProbe)]
    paired = [pair for pair in pairs if suite.name in pair.same_ids]
    if pass_probes and paired:
        with _timed(seconds, "shared pass"):
            report = shared_pass(
                reference,
                [pair.variant for pair in paired],
                documents,
                pass_probes,
                [pair.store.sink(suite.name) for pair in paired],
                progress,
            )
        for pair, own in zip(paired, report.variant_notes, strict=True):
            # Another suite, or the group that was observed before this variant alone, may have said the same.
            pair.observed.notes += [note for note in (*report.notes, *own) if note not in pair.observed.notes]
    for probe in suite.probes:
        if isinstance(probe, OwnProbe):
            with _timed(seconds, probe.kind):
                sinks = [pair.store.sink(suite.name) for pair in pairs]
                probe.observe(reference, [pair.variant for pair in pairs], sinks, progress)
    for pair in pairs:
        for stage, value in seconds.items():
            pair.observed.seconds[stage] = pair.observed.seconds.get(stage, 0.0) + value


def _measure(pair: _Pair, suites: Sequence[SuiteSpec]) -> None:
    """Turn tables into measurements. A measure that raises is a failure of the run, and the others still count."""
    with _timed(pair.observed.seconds, "measure"):
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


def _slices(pair: _Pair, suite: SuiteSpec) -> list[Slice]:
    """The parts of the documents that rules of the plan name; none where tokens cannot be compared."""
    wanted = asked_for(pair.observed.plan.gates)
    documents = pair.store.read(suite.name, "documents") if wanted and suite.name in pair.same_ids else None
    if documents is None:
        return []
    measures = cast(Sequence[Measure], suite.measures)
    return measure_slices(
        suite.name, documents, measures, lambda m: pair.store.read(suite.name, m.table, m.columns), wanted
    )


def _measure_one(pair: _Pair, suite: SuiteSpec, measure: Measure) -> Sequence[Measurement | Skipped]:
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


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
