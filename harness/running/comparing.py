"""Compares what users of both sides load beside weights, before any model is called and once an artifact is saved."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import HarnessError
from harness.measures.comparability import read_comparison
from harness.models.loaded import LoadedModel
from harness.planning.specs import SuiteSpec
from harness.probes import ArtifactSource, Context
from harness.progress import Progress
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
    pair.observed.comparison = next((read_comparison(table) for table in tables if table is not None), None)


def _tokenizers_differ(pair: Pair) -> bool:
    return pair.observed.reference.tokenizer_sha256 != pair.observed.variant.tokenizer_sha256
