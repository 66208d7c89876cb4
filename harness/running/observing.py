"""Every probe of every suite, over all pairs of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.data.encoding import EncodedDocument
from harness.errors import HarnessError
from harness.lockstep.driver import shared_pass
from harness.models.loaded import LoadedModel
from harness.planning.specs import SuiteSpec
from harness.plugins import load
from harness.probes import OwnProbe, PassProbe, Probe, TextProbe
from harness.progress import Progress
from harness.running.extending import Extending
from harness.running.measuring import read_apart
from harness.running.noise_floor import Perturbed
from harness.running.pairs import Documents, Pair, suite_texts
from harness.running.stopwatch import timed


def observe(
    suites: Sequence[SuiteSpec],
    documents: Documents,
    reference: LoadedModel,
    pairs: Sequence[Pair],
    progress: Progress,
    perturbed: Mapping[str, Perturbed] | None = None,
) -> dict[int, HarnessError]:
    """Drive every probe of every suite. Returns the errors of the pairs that failed, by id.

    Several variants are observed together. If that fails, each is observed alone, so that one bad variant
    takes nothing from the others: what was committed before is not computed again.
    """
    if not pairs:
        return {}
    try:
        for suite in suites:
            otherwise = (perturbed or {}).get(suite.name)
            _observe_suite(suite, documents[suite.name], reference, pairs, progress, otherwise)
    except HarnessError as error:
        if len(pairs) == 1:
            return {id(pairs[0]): error}
        failed: dict[int, HarnessError] = {}
        for pair in pairs:
            failed |= observe(suites, documents, reference, [pair], progress, perturbed)
        return failed
    return {}


def _observe_suite(
    suite: SuiteSpec,
    documents: Sequence[EncodedDocument],
    reference: LoadedModel,
    pairs: Sequence[Pair],
    progress: Progress,
    perturbed: Perturbed | None,
) -> None:
    seconds: dict[str, float] = {}
    pass_probes = [probe for probe in suite.probes if isinstance(probe, PassProbe)]
    paired = [pair for pair in pairs if suite.name not in pair.apart]
    if pass_probes and paired:
        growing = suite.documents is not None and suite.documents.min is not None
        looks = Extending(suite, documents, paired, perturbed) if growing else None
        with timed(seconds, "shared pass"):
            report = shared_pass(
                reference,
                [pair.variant for pair in paired],
                documents,
                pass_probes,
                [pair.store.sink(suite.name) for pair in paired],
                progress,
                looks=looks,
            )
        if looks is not None:
            looks.conclude()
        for pair, own in zip(paired, report.variant_notes, strict=True):
            # Another suite, or the group that was observed before this variant alone, may have said the same.
            pair.observed.notes += [note for note in (*report.notes, *own) if note not in pair.observed.notes]
    for probe in suite.probes:
        if isinstance(probe, OwnProbe):
            served = _served(pairs, probe)
            with timed(seconds, probe.kind):
                sinks = [pair.store.sink(suite.name) for pair in served]
                probe.observe(reference, [pair.variant for pair in served], sinks, progress)
    _observe_texts(suite, reference, pairs, progress, seconds)
    for pair in pairs:
        for stage, value in seconds.items():
            pair.observed.seconds[stage] = pair.observed.seconds.get(stage, 0.0) + value


def _observe_texts(
    suite: SuiteSpec, reference: LoadedModel, pairs: Sequence[Pair], progress: Progress, seconds: dict[str, float]
) -> None:
    """Probes that read texts, for all pairs; and for pairs whose tokens cannot be compared, what stands in for that."""
    apart = [pair for pair in pairs if suite.name in pair.apart]
    wanted = [(probe, _served(pairs, probe)) for probe in suite.probes if isinstance(probe, TextProbe)]
    instead = [load("probes", kind)() for kind in read_apart(suite)] if apart else []
    wanted += [(probe, apart) for probe in instead if isinstance(probe, TextProbe)]
    documents = suite_texts(suite) if wanted else ()
    for probe, those in wanted:
        with timed(seconds, probe.kind):
            sinks = [pair.store.sink(suite.name) for pair in those]
            variants = [pair.variant for pair in those]
            probe.observe(reference, variants, documents, suite.documents, sinks, progress)


def _served(pairs: Sequence[Pair], probe: Probe) -> Sequence[Pair]:
    """Those whose models can do what the probe asks of them."""
    return [pair for pair in pairs if probe.kind not in pair.unserved]
