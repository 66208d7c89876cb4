"""The noise floor of a suite: the reference compared with itself under other conditions, metric by metric.

It depends only on the reference and the documents, so it is computed once for all variants of a group and kept in
memory: its tables are small, and a resumed run recomputes the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.data.encoding import EncodedDocument
from harness.errors import ModelError, is_out_of_memory
from harness.lockstep.driver import shared_pass
from harness.lockstep.noise_floor import apply_condition, sample_documents
from harness.measures import Measure
from harness.models.loaded import LoadedModel
from harness.planning.sampling.clusters import label_clusters
from harness.planning.specs import SuiteSpec
from harness.progress import Progress
from harness.records import Measurement, NoiseFloor, Note, Skipped
from harness.system.foreign import guard

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A metric and its labels; no labels if it is the only one of its name."""


@dataclass
class MemoryTables:
    """Tables in memory, for a pass whose rows need not be stored (see harness.lockstep.recording.Sink)."""

    units: set[str] = field(default_factory=set)
    frames: dict[str, list[pd.DataFrame]] = field(default_factory=dict)

    def done(self, unit: str) -> bool:
        """Whether the unit was committed."""
        return unit in self.units

    def commit(
        self,
        unit: str,
        frames: Mapping[str, pd.DataFrame],
        snapshots: Mapping[str, pd.DataFrame] | None = None,
    ) -> None:
        """Store the rows of one unit."""
        self.units.add(unit)
        for table, frame in frames.items():
            self.frames.setdefault(table, []).append(frame)
        self.frames |= {table: [frame] for table, frame in (snapshots or {}).items()}

    def read_parts(self, table: str) -> Iterator[pd.DataFrame]:
        """The rows of a table unit by unit."""
        return iter(self.frames.get(table, ()))

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """What has been committed to a table so far."""
        import pandas as pd

        if table not in self.frames:
            return None
        frame = pd.concat(self.frames[table], ignore_index=True)
        return frame if columns is None else frame[list(columns)]


@dataclass(frozen=True)
class Perturbed:
    """The reference's tables under every condition of a suite, and notes for the reader.

    tables: empty if one condition failed: a floor without it might be too low.
    """

    documents: int
    tables: Mapping[str, MemoryTables]
    note: Note


def observe_perturbed(
    suite: SuiteSpec, documents: Sequence[EncodedDocument], reference: LoadedModel, progress: Progress
) -> Perturbed | None:
    """Compare the reference with itself under the conditions of a suite; None if it names none."""
    spec = suite.noise_floor
    probes = [probe for probe in suite.probes if probe.runs == "shared_pass" and not probe.whole_batches]
    if spec is None or not probes:
        return None
    sample = sample_documents(documents, spec.documents)
    tables: dict[str, MemoryTables] = {condition: MemoryTables() for condition in spec.conditions}
    try:
        ways = [apply_condition(condition, reference) for condition in spec.conditions]
        models, arranged = [model for model, _ in ways], [way for _, way in ways]
        shared_pass(reference, models, sample, probes, list(tables.values()), progress, arranged=arranged)
    except (ModelError, RuntimeError, MemoryError) as error:
        if not isinstance(error, ModelError) and not is_out_of_memory(error):
            raise
        text = f"the noise floor of suite {suite.name} is not known: {error}"
        return Perturbed(len(sample), {}, Note(topic="noise floor", text=text, level="warn"))
    runs, scored = len(sample) * (len(tables) + 1), sum(1 for document in documents if document.tokens)
    text = (
        f"suite {suite.name}: the reference against itself on {len(sample)} documents under {', '.join(tables)}; that "
        f"takes {runs} document passes, in addition to the {2 * scored} that compare one variant with the reference"
    )
    return Perturbed(len(sample), tables, Note(topic="noise floor", text=text))


def floors(perturbed: Perturbed, measures: Sequence[Measure]) -> dict[Key, NoiseFloor]:
    """The largest |change − neutral| of every metric over the conditions.

    A metric without a finite change under some condition has no floor, nor has one whose neutral value is infinite.
    """
    changes: dict[Key, list[tuple[float, str]]] = {}
    for condition, tables in perturbed.tables.items():
        entries = [entry for measure in measures for entry in _measure(measure, tables)]
        names = Counter(entry.name for entry in entries)
        for entry in entries:
            if entry.effect is not None:
                changes.setdefault(_key(entry, names), []).append((entry.effect, condition))
    return {
        key: NoiseFloor(value=value, condition=condition, documents=perturbed.documents)
        for key, values in changes.items()
        if len(values) == len(perturbed.tables)
        for value, condition in [max(values, key=lambda each: each[0])]
    }


def add_floors(found: Sequence[Measurement | Skipped], known: Mapping[Key, NoiseFloor]) -> list[Measurement | Skipped]:
    """Measurements with their floors, if known; a floor that a measure determined itself is kept."""
    names = Counter(entry.name for entry in found if isinstance(entry, Measurement))

    def add_floor(entry: Measurement | Skipped) -> Measurement | Skipped:
        if not isinstance(entry, Measurement) or entry.floor is not None:
            return entry
        floor = known.get(_key(entry, names))
        return entry if floor is None else entry.model_copy(update={"floor": floor})

    return [add_floor(entry) for entry in found] if known else list(found)


def _measure(measure: Measure, tables: MemoryTables) -> list[Measurement]:
    """The results of a measure; empty if it raises or has no rows: its metrics then have no floor."""
    table = tables.read(measure.table, measure.columns)
    if table is None or table.empty:
        return []
    if measure.by_document:
        table = label_clusters(table, tables.read("documents"))
    try:
        with guard(f"the measure {measure.kind}"):
            results = measure.measure(table)
    except Exception:  # noqa: BLE001 - whatever a plugin raises here, it raises or says about the variant too
        return []
    return [entry for entry in results if isinstance(entry, Measurement)]


def _key(entry: Measurement, names: Counter[str]) -> Key:
    """Key of a measurement. Labels distinguish modules; if a name has one measurement, they only say where it was
    found."""
    return entry.name, tuple(sorted(entry.labels.items())) if names[entry.name] > 1 else ()
