"""Compares what users of both sides load beside weights, before any model is called and once an artifact is saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.measures.comparability import read_comparison
from harness.models.loaded import LoadedModel
from harness.planning.specs import SuiteSpec
from harness.probes import ArtifactSource, Context
from harness.progress import Progress
from harness.records import Comparison, Note
from harness.report.comparability import title
from harness.running.pair import Pair
from harness.running.pairs import LoadedPair, suite_texts
from harness.system.foreign import guard

TABLE = "comparability"


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


def conclude_comparison(pair: Pair, suites: Sequence[SuiteSpec]) -> None:
    """Record the last comparison of a pair: that of its artifact, if one was saved, with what it omits."""
    tables = (pair.store.read(suite.name, TABLE) for suite in suites)
    pair.observed.comparison = next((read_comparison(table) for table in tables if table is not None), None)
    pair.observed.notes += _note_omissions(pair.observed.comparison)


def _note_omissions(comparison: Comparison | None) -> Iterator[Note]:
    """A warning that names what could not be compared, by its reason."""
    reasons: dict[str, list[str]] = {}
    for lost in comparison.omissions if comparison else ():
        reasons.setdefault(lost.reason, []).append(title(lost.part))
    if reasons:
        said = "; ".join(f"{', '.join(parts)}: {reason}" for reason, parts in reasons.items())
        yield Note(topic=TABLE, text=f"not everything could be compared: {said}", level="warn")


def _tokenizers_differ(pair: Pair) -> bool:
    return pair.facts.reference.tokenizer_sha256 != pair.facts.variant.tokenizer_sha256
