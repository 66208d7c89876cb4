"""Runs every probe of every suite, except those of the artifact, over all pairs of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.data.encoding import EncodedDocument
from harness.errors import HarnessError
from harness.lockstep.driver import shared_pass
from harness.models.loaded import LoadedModel
from harness.planning.specs import SuiteSpec
from harness.plugins import load
from harness.probes import Context, Probe
from harness.progress import Progress
from harness.records.own_rules import REPEATS
from harness.running.extending import Extending, ExtendingItems
from harness.running.extra_ids import note_extra_mass
from harness.running.measuring import read_apart
from harness.running.noise_floor import Perturbed
from harness.running.pairs import Documents, Pair, suite_texts
from harness.running.stopwatch import measure_time
from harness.running.token_texts import store_token_texts
from harness.system.foreign import guard


def observe(
    suites: Sequence[SuiteSpec],
    documents: Documents,
    reference: LoadedModel,
    pairs: Sequence[Pair],
    progress: Progress,
    perturbed: Mapping[str, Perturbed] | None = None,
) -> None:
    """Run every probe of every suite. A pair that fails keeps its error.

    Several variants are observed together. If that fails, each is observed alone, so that one failing variant does not
    affect the others: committed rows are not computed again.
    """
    if not pairs:
        return
    try:
        for suite in suites:
            noise = (perturbed or {}).get(suite.name)
            _observe_suite(suite, documents[suite.name], reference, pairs, progress, noise)
    except HarnessError as error:
        if len(pairs) == 1:
            pairs[0].error = error
            return
        for pair in pairs:
            observe(suites, documents, reference, [pair], progress, perturbed)


def _observe_suite(
    suite: SuiteSpec,
    documents: Sequence[EncodedDocument],
    reference: LoadedModel,
    pairs: Sequence[Pair],
    progress: Progress,
    perturbed: Perturbed | None,
) -> None:
    seconds: dict[str, float] = {}
    same_tokens = [pair for pair in pairs if suite.name not in pair.token_mismatches]
    _run_shared_pass(suite, documents, reference, same_tokens, progress, perturbed, seconds)
    alone = [(probe, _select_observable(suite, probe, pairs)) for probe in suite.probes if probe.runs == "alone"]
    if others := [pair for pair in pairs if suite.name in pair.token_mismatches]:
        alone += [(load(Probe, kind)(), others) for kind in read_apart(suite)]
    texts = suite_texts(suite) if any(probe.reads == "texts" for probe, _ in alone) else ()
    for probe, those in alone:
        drawing = any(each.table == probe.kind and each.item_sampling() for each in suite.measures)
        items = ExtendingItems(suite, those) if drawing else None
        context = Context(
            reference,
            [pair.variant for pair in those],
            [pair.store.sink(suite.name) for pair in those],
            progress,
            documents=documents if probe.reads == "tokens" else (),
            texts=texts if probe.reads == "texts" else (),
            spec=suite.documents,
            items=items,
        )
        with measure_time(seconds, probe.kind), guard(f"the probe {probe.kind}"):
            probe.observe(context)
        if items is not None:
            items.conclude()
        for pair, sink in zip(those, context.sinks, strict=True):
            pair.observed.notes += [note for note in probe.notes(sink) if note not in pair.observed.notes]
    for pair in pairs:
        for stage, value in seconds.items():
            pair.observed.seconds[stage] = pair.observed.seconds.get(stage, 0.0) + value


def _run_shared_pass(
    suite: SuiteSpec,
    documents: Sequence[EncodedDocument],
    reference: LoadedModel,
    pairs: Sequence[Pair],
    progress: Progress,
    perturbed: Perturbed | None,
    seconds: dict[str, float],
) -> None:
    """Run the shared pass of all its probes of a suite, over pairs with the same token ids."""
    probes = [probe for probe in suite.probes if probe.runs == "shared_pass"]
    if not probes or not pairs:
        return
    growing = suite.documents is not None and suite.documents.min is not None
    looks = Extending(suite, documents, pairs, perturbed) if growing else None
    variants, sinks = [pair.variant for pair in pairs], [pair.store.sink(suite.name) for pair in pairs]
    with measure_time(seconds, "shared pass"), guard(f"the shared pass of suite {suite.name}"):
        report = shared_pass(reference, variants, documents, probes, sinks, progress, looks=looks)
    with measure_time(seconds, "token texts"), guard("the reference's tokenizer"):
        for sink in sinks:
            store_token_texts(sink, reference.tokenizer)
    if looks is not None:
        looks.conclude()
    for pair, own in zip(pairs, report.variant_notes, strict=True):
        # Another suite, or the group that was observed before this variant alone, may have said the same.
        extra = note_extra_mass(pair.store, suite.name)
        pair.observed.notes += [note for note in (*report.notes, *own, *extra) if note not in pair.observed.notes]
        if report.repeat is not None and report.repeat.max_abs_diff != 0 and suite.noise_floor is None:
            pair.observed.broken[REPEATS].append(
                f"suite {suite.name}: {report.repeat}, so a difference between reference and variant may be none; give "
                "the suite a noise_floor, by which every metric is then judged, or make the model deterministic"
            )


def _select_observable(suite: SuiteSpec, probe: Probe, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose variants support what a probe needs and, if it compares tokens, have the same token ids."""
    return [
        pair
        for pair in pairs
        if probe.kind not in pair.unsupported and not (probe.compares_tokens and suite.name in pair.token_mismatches)
    ]
