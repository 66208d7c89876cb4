"""Reads suite files: the measures, their documents, and the probes that they need."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from harness import plugins
from harness.errors import HarnessError, Problem
from harness.measures import Measure
from harness.planning.checking import Checker
from harness.planning.data.own_data import TASKS, OwnData
from harness.planning.data.readable import check_readable
from harness.planning.files import SuiteFile
from harness.planning.left_out import read_measure_names
from harness.planning.locating import check_description, check_file_name, find_data, find_file
from harness.planning.specs import SuiteSpec
from harness.planning.task_paths import check_tasks, name_tasks
from harness.plugins import nearest
from harness.probes import Probe
from harness.records import CalibrationSpec, Condition, DocumentsSpec, HubData, Metric, NoiseFloorSpec, TrainingSpec
from harness.records.plan import OWN
from harness.system.resources import POCKET_SPLITS
from harness.system.yaml_file import read_yaml
from harness.system.yaml_values import KeyPath, describe

D = TypeVar("D", DocumentsSpec, CalibrationSpec, TrainingSpec)

COMPARABILITY = "comparability"
"""The measure that is part of every suite."""
TRAINING = "training"
"""The measure that is part of every suite of a variant that a step trains."""
NOISE_FLOOR = "noise_floor"
"""A key of suite files."""
CONDITIONS: tuple[str, ...] = get_args(Condition)
NO_EFFECT = ("seed", "text_field", "prompt_field", "split_on")
"""Settings that only some sources of documents support."""


@dataclass(frozen=True)
class Suite:
    """The valid part of a suite file.

    measures: by their position in the file. complete: whether none is missing, so that every metric is known. without:
    the measures that it leaves out on purpose. takes_documents, takes_tasks: whether it was made for those of the
    variant file.
    """

    name: str
    source: str
    documents: DocumentsSpec | None
    measures: dict[int, Measure]
    probes: tuple[Probe, ...]
    complete: bool
    noise_floor: NoiseFloorSpec | None = None
    without: tuple[str, ...] = ()
    takes_documents: bool = False
    takes_tasks: bool = False

    @property
    def metrics(self) -> list[Metric]:
        """Every metric that its measures can yield."""
        return [metric for measure in self.measures.values() for metric in measure.produces()]

    @property
    def sequential_metrics(self) -> list[str]:
        """The metrics for which the suite can measure more documents, or more items of tasks."""
        measures = self.measures.values()
        names = [metric.name for each in measures if each.item_sampling() for metric in each.produces()]
        if self.documents is None or self.documents.min is None:
            return names
        return [*names, *(name for measure in measures for name in measure.metrics_by_document())]

    def with_target(self, target: str | None) -> Suite:
        """The suite for a variant with this ``target``."""
        return replace(self, measures={index: each.with_target(target) for index, each in self.measures.items()})

    def spec(self) -> SuiteSpec:
        """The record, for a file without mistakes."""
        return SuiteSpec(
            name=self.name,
            source=self.source,
            documents=self.documents,
            measures=tuple(self.measures.values()),
            probes=self.probes,
            noise_floor=self.noise_floor,
            without=self.without,
        )


def read_suite(
    name: str, base: Path, problems: list[Problem], own: OwnData | None = None, also: Sequence[str] = ()
) -> Suite | None:
    """Read a suite, shipped or at a path under ``base``, and note its problems; None if it cannot be read.

    own: the documents and tasks of the variant file, for a suite that was made for them. also: measures that the
    variant needs, whatever the suite names.
    """
    own = own or OwnData()
    path, shown = find_file("suites", name, base)
    source = read_yaml(path, problems, shown)
    if source is None:
        return None
    check = Checker(source, path.parent, problems)
    check_file_name(check, path)
    content = check.mapping(source.data, (), tuple(SuiteFile.model_fields))
    check_description(check, content)
    without = read_measure_names(check, content.get("without"), "without")
    given = check.entries(content.get("measures"), ("measures",), "measures")
    measures = _measures(check, given)
    _check_without(check, without, measures)
    complete = bool(given) and set(range(len(given))) <= measures.keys()
    takes_documents, takes_tasks = _is_own(content.get("documents")), TASKS in without
    documents = _documents(check, content.get("documents"), own if takes_documents else OwnData())
    if takes_tasks and own.tasks is not None:
        measures = {**measures, len(given): own.tasks}
        without = tuple(kind for kind in without if kind != TASKS)
    measures = _complete(measures, len(given) + 1, (COMPARABILITY, *also))
    probes = _probes(check, measures)
    if content.get("documents") is None:
        _need_no_documents(check, measures, probes)
    if documents is not None and documents.min is not None:
        _check_growing(check, documents, measures.values())
    noise_floor = None
    if content.get("noise_floor") is not None:
        noise_floor = _noise_floor_of(check, content["noise_floor"], probes)
    by_table = tuple(probes[table] for table in sorted(probes))
    return Suite(
        path.stem, shown, documents, measures, by_table, complete, noise_floor, without, takes_documents, takes_tasks
    )


def _is_own(value: Any) -> bool:
    """Whether the documents of a suite are those of the variant file."""
    return isinstance(value, Mapping) and value.get("data") == OWN


def _documents(check: Checker, value: Any, own: OwnData) -> DocumentsSpec | None:
    """The documents of a suite; for one made for the user's own, with the settings of the variant file on top."""
    if value is None:
        return None
    if not _is_own(value):
        return read_documents_spec(check, DocumentsSpec, value, "documents")
    return check.record(DocumentsSpec, {**value, **(own.documents or {})}, ("documents",))


def _check_without(check: Checker, without: Sequence[str], measures: Mapping[int, Measure]) -> None:
    measured = {measure.kind for measure in measures.values()}
    for index, kind in enumerate(without):
        if kind in measured:
            check.problem(("without", index), f"{kind}, which the suite measures", "a measure that it leaves out")


def read_documents_spec(check: Checker, cls: type[D], value: Any, key: str) -> D | None:
    """Documents of a suite, for calibration or training, with absolute paths; None and problems if they are wrong."""
    if not isinstance(value, Mapping) or "data" not in value:
        return check.record(cls, value, (key,))
    data = find_data(check, value["data"], (key, "data"))
    spec = check.record(cls, {**value, "data": "pocket-heldout" if data is None else data}, (key,))
    if data is None or spec is None:
        return None
    for setting in filter(cls.model_fields.__contains__, NO_EFFECT):
        grows = isinstance(spec, DocumentsSpec) and spec.min is not None
        drawn = setting == "seed" and (grows or isinstance(spec, TrainingSpec))
        if (
            getattr(spec, setting) != cls.model_fields[setting].default
            and setting not in _list_settings(data)
            and not drawn
        ):
            found = f"a {setting} for {source_name(data)}, which does not use it"
            check.problem((key, setting), found, "no such key here")
    check_readable(check, spec, key)
    return spec


def _check_growing(check: Checker, documents: DocumentsSpec, measures: Iterable[Measure]) -> None:
    """Note what prevents sequential sampling (``min``)."""
    path: KeyPath = ("documents", "min")
    if documents.max is None:
        hint = f"write for example max: {10 * cast(int, documents.min)}"
        check.problem(path, "min without max", "both: the looks are planned between them", hint)
    elif documents.max < cast(int, documents.min):
        check.problem(path, f"min {documents.min} above max {documents.max}", "at most as many as max")
    if documents.packed:
        hint = "write packed: false, or leave out min"
        check.problem(path, "min with packed: true", "documents that are sampled individually, not joined", hint)
    if not any(measure.metrics_by_document() for measure in measures):
        hint = "leave out min, or add one of divergence, perplexity, calibration, logits, layer_error"
        check.problem(path, "min, but no measure of individual documents", "a measure by token or layer", hint)


def source_name(data: str | HubData) -> str:
    """A short name of the source of documents."""
    return data.hub if isinstance(data, HubData) else os.path.basename(data)


def _list_settings(data: str | HubData) -> tuple[str, ...]:
    if isinstance(data, HubData) or data.endswith(".jsonl"):
        return ("text_field", "prompt_field")
    return ("seed",) if data in POCKET_SPLITS else ("split_on",)


def _measures(check: Checker, given: Sequence[Any]) -> dict[int, Measure]:
    """Measures by their position in the file; without those that have problems."""
    found: dict[int, Measure] = {}
    first: dict[str, KeyPath] = {}
    for index, entry in enumerate(given):
        path: KeyPath = ("measures", index)
        before = len(check.problems)
        entry = name_tasks(check, entry, path)
        plugin = check.plugin(Measure, entry, path) if len(check.problems) == before else None
        if plugin is None:
            continue
        check_tasks(check, plugin)
        if plugin.kind in first:
            again = f"the measure {plugin.kind} again (first on line {check.source.line(first[plugin.kind])})"
            check.problem(path, again, "each measure once")
        first.setdefault(plugin.kind, path)
        found[index] = plugin
    return found


def _complete(measures: dict[int, Measure], position: int, kinds: Sequence[str]) -> dict[int, Measure]:
    """The measures, and behind them those of ``kinds`` that are missing: they need nothing of a suite."""
    named = {measure.kind for measure in measures.values()}
    missing = [kind for kind in kinds if measures and kind not in named]
    return measures | {position + n: plugins.load(Measure, kind)() for n, kind in enumerate(missing)}


def _probes(check: Checker, measures: Mapping[int, Measure]) -> dict[str, Probe]:
    """The probe behind each table, by table, with the merged settings of all measures of that table."""
    settings: dict[str, dict[str, Any]] = {}
    asked_by: dict[tuple[str, str], int] = {}
    askers: dict[str, int] = {}
    for index, measure in measures.items():
        wanted = settings.setdefault(measure.table, {})
        askers.setdefault(measure.table, index)
        for key, value in sorted(measure.probe_settings().items()):
            other = asked_by.setdefault((measure.table, key), index)
            if wanted.setdefault(key, value) != value:
                check.problem(
                    ("measures", index),
                    f"{measure.kind} with {key} {value!r}",
                    f"{key} {wanted[key]!r}, as the measure {measures[other].kind} has it",
                    f"measures that read the table {measure.table} share one probe",
                )
    probes = {table: _probe(check, table, settings[table], index) for table, index in askers.items()}
    return {table: probe for table, probe in probes.items() if probe is not None}


def _probe(check: Checker, table: str, settings: Mapping[str, Any], index: int) -> Probe | None:
    path: KeyPath = ("measures", index)
    try:
        cls = plugins.load(Probe, table)
    except (HarnessError, ImportError) as error:
        found = f"a measure of the table {table}, which no probe writes ({error})"
        check.problem(path, found, "the table of a probe")
        return None
    return check.record(cls, settings, path)


def _need_no_documents(check: Checker, measures: Mapping[int, Measure], probes: Mapping[str, Probe]) -> None:
    filled_by = [(measure.kind, probes.get(measure.table)) for measure in measures.values()]
    reading = [kind for kind, probe in filled_by if probe is not None and probe.reads_documents]
    if reading:
        expected = f"documents, which {', '.join(reading)} need{'s' if len(reading) == 1 else ''}"
        hint = "add for example documents: {data: pocket-heldout, max: 200}"
        check.problem((), "no documents", expected, hint)


def _noise_floor_of(check: Checker, value: Any, probes: Mapping[str, Probe]) -> NoiseFloorSpec | None:
    """A list of conditions, or a mapping with ``conditions`` and ``documents``; None and problems if it is wrong."""
    path: KeyPath = (NOISE_FLOOR, "conditions") if isinstance(value, Mapping) else (NOISE_FLOOR,)
    given = value.get("conditions") if isinstance(value, Mapping) else value
    entries = check.entries(given, path, f"conditions ({', '.join(CONDITIONS)})")
    for index, entry in enumerate(entries):
        if not (isinstance(entry, str) and entry in CONDITIONS):
            close = nearest(entry, CONDITIONS) if isinstance(entry, str) else ""
            hint = f"did you mean {close}?" if close else ""
            check.problem((*path, index), describe(entry), f"one of {', '.join(CONDITIONS)}", hint)
        elif entry in entries[:index]:
            check.problem((*path, index), f"{entry} again", "each condition once")
    if not any(probe.runs == "shared_pass" for probe in probes.values()):
        expected = "a measure of documents that both models read, such as divergence"
        check.problem((NOISE_FLOOR,), "a noise floor, but no measure that it applies to", expected)
    good = {entry for entry in entries if isinstance(entry, str) and entry in CONDITIONS}
    if not good or len(good) < len(entries):
        return None
    return check.record(NoiseFloorSpec, value if isinstance(value, Mapping) else {"conditions": value}, (NOISE_FLOOR,))
