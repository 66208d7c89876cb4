"""Run: load the reference once, make its variants, run the probes, and compute measurements from their tables.

Every plan of a group names the same reference and the same suites, so each batch goes through the reference once
however many variants there are. A variant that cannot be made or observed is reported and leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.models.loaded import LoadedModel, verify_unchanged
from harness.models.loading import load
from harness.planning.specs import Plan, SuiteSpec
from harness.progress import Progress, report_to
from harness.records import HubData
from harness.running.artifact import observe_artifacts
from harness.running.comparing import observe_files
from harness.running.measuring import measure
from harness.running.noise_floor import Perturbed, observe_perturbed
from harness.running.observing import observe
from harness.running.opening import note_openings, settle_openings
from harness.running.pairs import Documents, Known, Observed, Pair, encode_suite, make_pair, suite_texts
from harness.running.stopwatch import measure_time
from harness.system.foreign import LONG, Ticking, guard


def run_group(plans: Sequence[Plan], folders: Sequence[Path], progress: Progress) -> list[Observed | HarnessError]:
    """Observe and measure every variant of one group of plans (see forecast.passes); ``folders`` in the same order.

    A variant that fails has its HarnessError as outcome; a failure of the reference is raised.
    """
    ticking = Ticking(progress)
    with report_to(ticking):
        return _run_group(plans, folders, ticking)


def _run_group(plans: Sequence[Plan], folders: Sequence[Path], progress: Progress) -> list[Observed | HarnessError]:
    seconds: dict[str, float] = {}
    with measure_time(seconds, "open inputs"):
        _open_inputs(plans[0].suites, progress)
    with measure_time(seconds, "load reference"):
        with guard("loading the reference", patience=LONG):
            reference = load(plans[0].reference, Path(plans[0].reference.model).name)
        asked, plans = plans, [settle_openings(plan, reference.tokenizer) for plan in plans]
    with measure_time(seconds, "encode documents"):
        documents = {suite.name: encode_suite(suite, reference) for suite in plans[0].suites}
    outcomes: list[Pair | HarnessError] = []
    known = Known()
    for done, (plan, folder) in enumerate(zip(plans, folders, strict=True)):
        progress.step("make variants", done, len(plans))
        try:
            with guard(f"making {plan.name}", patience=LONG):
                own = dict(seconds)
                with measure_time(own, "describe variant"):
                    outcomes.append(make_pair(plan, folder, reference, documents, known, own))
        except HarnessError as error:
            outcomes.append(error)
    progress.step("make variants", len(plans), len(plans))
    for outcome, plan in zip(outcomes, asked, strict=True):
        if isinstance(outcome, Pair):
            outcome.observed.notes += note_openings(plan, reference.tokenizer)
    pairs = [outcome for outcome in outcomes if isinstance(outcome, Pair)]
    try:
        observe_files(plans[0].suites, reference, pairs, progress)
        compared = [pair for pair in pairs if pair.error is None]
        # Before anything else: a rule that asks for it is decided, and documents no longer drawn, only with its floor.
        with guard("the noise floor"):
            perturbed = _observe_perturbed(plans[0].suites, documents, reference, compared, progress)
        observe(plans[0].suites, documents, reference, compared, progress, perturbed)
        with guard("the artifacts", patience=LONG):
            observe_artifacts(documents, reference, [pair for pair in pairs if pair.error is None], progress)
        verify_unchanged(reference)
        for pair in (pair for pair in pairs if pair.error is None):
            try:
                verify_unchanged(pair.variant)
            except HarnessError as error:
                pair.error = error
            else:
                measure(pair, pair.observed.plan.suites, perturbed)
    finally:
        for pair in pairs:
            pair.store.close()
    return [outcome.error or outcome.observed if isinstance(outcome, Pair) else outcome for outcome in outcomes]


def _open_inputs(suites: Sequence[SuiteSpec], progress: Progress) -> None:
    """Open tasks and data sets of the hub before any model is loaded: what cannot be read fails here, and not after a
    pass. Raises DataError. The plan has opened the files of documents.
    """
    for suite in suites:
        if suite.documents is not None and isinstance(suite.documents.data, HubData):
            with guard(f"opening the documents of suite {suite.name}"):
                suite_texts(suite)
        for probe in suite.probes:
            with guard(f"opening what the probe {probe.kind} reads"):
                probe.prepare(progress)


def _observe_perturbed(
    suites: Sequence[SuiteSpec],
    documents: Documents,
    reference: LoadedModel,
    pairs: Sequence[Pair],
    progress: Progress,
) -> dict[str, Perturbed]:
    """Run the reference under the conditions of each suite, for all variants whose tokens can be compared."""
    by_suite: dict[str, Perturbed] = {}
    seconds: dict[str, float] = {}
    for suite in suites:
        with measure_time(seconds, "noise floor"):
            same_tokens = [pair for pair in pairs if suite.name not in pair.token_mismatches]
            perturbed = observe_perturbed(suite, documents[suite.name], reference, progress) if same_tokens else None
        if perturbed is not None:
            by_suite[suite.name] = perturbed
            for pair in same_tokens:
                pair.observed.notes.append(perturbed.note)
    for pair in pairs if by_suite else ():
        pair.observed.seconds |= seconds
    return by_suite
