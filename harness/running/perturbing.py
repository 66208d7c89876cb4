"""Observes the noise floor of a suite: runs the reference under other conditions, and stores what it differs by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.concluding.noise_floor import TABLE, UNIT, list_probes
from harness.data.encoding import EncodedDocument
from harness.errors import ModelError, is_out_of_memory
from harness.lockstep.driver import shared_pass
from harness.lockstep.noise_floor import apply_condition, sample_documents
from harness.models.loaded import LoadedModel
from harness.planning.specs import SuiteSpec
from harness.progress import Progress
from harness.tables.memory import MemoryTables

if TYPE_CHECKING:
    import pandas as pd

    from harness.tables.access import Sink


def observe_perturbed(
    suite: SuiteSpec,
    documents: Sequence[EncodedDocument],
    reference: LoadedModel,
    sinks: Sequence[Sink],
    progress: Progress,
) -> None:
    """Compare the reference with itself under the conditions of a suite, and commit that as one unit to every sink."""
    spec, probes = suite.noise_floor, list_probes(suite)
    lacking = [sink for sink in sinks if not sink.done(UNIT)]
    if spec is None or not probes or not lacking:
        return
    sample = sample_documents(documents, spec.documents)
    sums = {probe.sums: probe.combine for probe in probes if probe.sums}
    tables = {condition: MemoryTables(combine=sums) for condition in spec.conditions}
    level = "info"
    try:
        ways = [apply_condition(condition, reference) for condition in spec.conditions]
        models, arranged = [model for model, _ in ways], [way for _, way in ways]
        shared_pass(reference, models, sample, probes, list(tables.values()), progress, arranged=arranged)
    except (ModelError, RuntimeError, MemoryError) as error:
        if not isinstance(error, ModelError) and not is_out_of_memory(error):
            raise
        tables, level = {}, "warn"
        text = f"the noise floor of suite {suite.name} is not known: {error}"
    else:
        runs, scored = len(sample) * (len(tables) + 1), sum(1 for document in documents if document.tokens)
        text = (
            f"suite {suite.name}: the reference against itself on {len(sample)} documents under {', '.join(tables)}; "
            f"that takes {runs} document passes, in addition to the {2 * scored} that compare one variant with the "
            "reference"
        )
    frames = {TABLE: _describe(list(tables), len(sample), text, level)}
    for condition, found in tables.items():
        frames |= {f"{name}@{condition}": frame for name, frame in found.join().items()}
    for sink in lacking:
        sink.commit(UNIT, frames)


def _describe(conditions: Sequence[str], documents: int, text: str, level: str) -> pd.DataFrame:
    """One row for each condition; a single one without a condition if no floor is known."""
    import pandas as pd

    rows = [(condition, documents, text, level) for condition in conditions or ("",)]
    return pd.DataFrame(rows, columns=["condition", "documents", "text", "level"])
