"""Compares what users of both sides load beside weights, before any model is called and once an artifact is saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.errors import HarnessError
from harness.measures.comparability import read_comparison
from harness.models.loaded import LoadedModel
from harness.planning.specs import SuiteSpec
from harness.probes import ArtifactSource, Context
from harness.progress import Progress
from harness.records import Comparison, Note
from harness.report.comparability import title
from harness.running.pairs import Pair, suite_texts
from harness.running.stopwatch import measure_time
from harness.system.foreign import guard

TABLE = "comparability"


def observe_files(
    suites: Sequence[SuiteSpec], reference: LoadedModel, pairs: Sequence[Pair], progress: Progress
) -> None:
    """Let the probes of files observe every pair. A pair that fails keeps its error."""
    for pair in pairs:
        try:
            with measure_time(pair.observed.seconds, TABLE):
                compare_files(suites, reference, pair, progress)
        except HarnessError as error:
            pair.error = error


def compare_files(
    suites: Sequence[SuiteSpec],
    reference: LoadedModel,
    pair: Pair,
    progress: Progress,
    artifact: ArtifactSource | None = None,
) -> None:
    """Let the probes of files observe one pair, or the artifact that was saved of its variant."""
    for suite in suites:
        for probe in (probe for probe in suite.probes if probe.runs == "files"):
            texts = suite_texts(suite) if artifact is not None or _tokenizers_differ(pair) else ()
            sinks = [pair.store.sink(suite.name)]
            context = Context(reference, (pair.variant,), sinks, progress, texts=texts, artifact=artifact)
            with guard(f"the probe {probe.kind}"):
                probe.observe(context)
    tables = (pair.store.read(suite.name, TABLE) for suite in suites)
    found = next((read_comparison(table) for table in tables if table is not None), None)
    # An artifact is compared again, and what could not be compared before it was saved may be there now.
    kept = [note for note in pair.observed.notes if note.topic != TABLE]
    pair.observed.comparison, pair.observed.notes = found, [*kept, *_note_omissions(found)]


def _note_omissions(comparison: Comparison | None) -> Iterator[Note]:
    """A warning that names what could not be compared, by its reason."""
    reasons: dict[str, list[str]] = {}
    for lost in comparison.omissions if comparison else ():
        reasons.setdefault(lost.reason, []).append(title(lost.part))
    if reasons:
        said = "; ".join(f"{', '.join(parts)}: {reason}" for reason, parts in reasons.items())
        yield Note(topic=TABLE, text=f"not everything could be compared: {said}", level="warn")


def _tokenizers_differ(pair: Pair) -> bool:
    return pair.observed.reference.tokenizer_sha256 != pair.observed.variant.tokenizer_sha256
