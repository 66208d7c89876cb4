"""The noise floor of a suite: the reference compared with itself under other conditions, metric by metric.

It depends only on the reference and the documents, so it is computed once for all variants of a group, and stored as
one unit of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.measures import Measure
from harness.planning.sampling.clusters import label_clusters
from harness.planning.specs import SuiteSpec
from harness.probes import Probe
from harness.records import Measurement, NoiseFloor, Note, Skipped
from harness.system.foreign import guard

if TYPE_CHECKING:
    import pandas as pd

    from harness.tables.access import Tables

UNIT = TABLE = "noise_floor"
TOPIC = "noise floor"
Key = tuple[str, tuple[tuple[str, str], ...]]
"""A metric and its labels; no labels if it is the only one of its name."""


@dataclass(frozen=True)
class StoredCondition:
    """The tables of one condition, which are named after it."""

    tables: Tables
    suite: str
    condition: str

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """One table, None if there is none of that name."""
        return self.tables.read(self.suite, f"{table}@{self.condition}", columns)


@dataclass(frozen=True)
class Perturbed:
    """The reference's tables under every condition of a suite, and notes for the reader.

    tables: empty if one condition failed: a floor without it might be too low.
    """

    documents: int
    tables: Mapping[str, StoredCondition]
    note: Note


def perturbs(suite: SuiteSpec) -> bool:
    """Whether a suite asks for a noise floor, and has probes that it can be found for."""
    return suite.noise_floor is not None and bool(list_probes(suite))


def list_probes(suite: SuiteSpec) -> list[Probe]:
    """The probes of which a noise floor can be found."""
    return [probe for probe in suite.probes if probe.runs == "shared_pass" and not probe.whole_batches]


def read_perturbed(tables: Tables, suite: str) -> Perturbed | None:
    """What ``harness.running.perturbing`` committed; None if nothing."""
    about = tables.read(suite, TABLE)
    if about is None:
        return None
    first = about.iloc[0]
    note = Note(topic=TOPIC, text=str(first["text"]), level="warn" if first["level"] == "warn" else "info")
    conditions = [str(each) for each in about["condition"] if each]
    return Perturbed(int(first["documents"]), {each: StoredCondition(tables, suite, each) for each in conditions}, note)


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


def _measure(measure: Measure, tables: StoredCondition) -> list[Measurement]:
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
