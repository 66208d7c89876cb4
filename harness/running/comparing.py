"""Compares what users of both sides load beside weights, before any model is called and once an artifact is saved."""

from __future__ import annotations

from collections.abc import Sequence

from harness.concluding.pair import Pair
from harness.models.loaded import LoadedModel
from harness.planning.specs import SuiteSpec
from harness.probes import ArtifactSource, Context
from harness.progress import Progress
from harness.running.pairs import LoadedPair, suite_texts
from harness.system.foreign import guard


def compare_files(
    suites: Sequence[SuiteSpec],
    reference: LoadedModel,
    pair: LoadedPair,
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


def _tokenizers_differ(pair: Pair) -> bool:
    return pair.facts.reference.tokenizer_sha256 != pair.facts.variant.tokenizer_sha256
