"""What a run comes to, as data: what every output says of it, so that outputs differ in their format alone.

All texts are on one line, bounded, and free of control characters; each format escapes what it takes for markup.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import FailureClass
from harness.records import FAILURE_FILE, Failure, Fault, Level, Measurement, Run, Status
from harness.records.own_rules import OWN_GATE
from harness.report import asked, comparability, stops, verdict, words
from harness.report.display import clean, shorten_path
from harness.report.rules import Judged, prepare_verdicts
from harness.report.worst import list_worst
from harness.system.resources import bundled_names

REPORT = "report.html"
CAUSE = "cause"
UNKNOWN_TIME = "1970-01-01T00:00:00+00:00"
REMEDIES: Mapping[FailureClass, tuple[str, str]] = {
    "usage": ("", "correct the file, setting or task that the reason names, and check again"),
    "model_unsupported": ("", "load it with the library that wrote it, or choose a step that takes this architecture"),
    "comparability": (
        "comparability",
        "make the two sides alike in what differs, or save the variant with those files",
    ),
    "quantization_coverage": ("formats", "see which modules are in which format, and compress what was left out"),
    "accounting": ("artifact", "compare the files and sizes with what was declared"),
    "numerics": (CAUSE, "find the worst modules; keep them in higher precision, or use a finer granularity"),
    "quality": (
        CAUSE,
        "find the worst documents, tokens and modules; keep those modules in higher precision, use more bits or "
        "smaller groups, or another method",
    ),
    "resources": ("cost", "free what ran short, or choose a format that the target computes faster or stores smaller"),
}
"""By class of failure: the section of the report with the cause, and what to do about it."""


@dataclass(frozen=True)
class Finding:
    """What one rule found.

    id: the rule and its metric, without labels. name: with labels, unique among the rules of its gate. numbers: what
    was found, with its interval. where: the rule's file and line. place: the same in the user's own files: a bundled
    gate is shown at the variant file. remedy: what to do; empty where the rule passes. fingerprint: the same in every
    run of this variant, whatever was found and wherever the rule stands.
    """

    gate: str
    id: str
    name: str
    title: str
    status: Status
    level: Level
    expected: str
    numbers: str
    reason: str
    why: str
    where: str
    place: tuple[str, int]
    remedy: str
    fingerprint: str

    @property
    def stops(self) -> bool:
        """Whether it keeps the run from passing."""
        return self.level == "block" and self.status != "pass"

    @property
    def warns(self) -> bool:
        """Whether it is advisory and does not pass."""
        return self.level == "warn" and self.status != "pass"

    @property
    def sentence(self) -> str:
        """What was found, what was expected, and the reason."""
        found = f"found {self.numbers or 'nothing'}, expected {self.expected}" if self.expected else self.numbers
        return "; ".join(dict.fromkeys(filter(None, (found, self.reason))))


@dataclass(frozen=True)
class Digest:
    """What a run comes to, or why there is none.

    findings: in the order of the files. report: where its report is. judged: whether there is a run. started: in
    ISO 8601. seconds: of the whole run. selected: which variant was selected in place of all, in a sentence; empty
    where all count. passed_over: another one was. compressed: what was made of what, one fact a line.
    """

    name: str
    verdict: Status
    headline: str
    reason: str
    failure: str
    comparable: str
    warnings: tuple[str, ...]
    stops: tuple[str, ...]
    findings: tuple[Finding, ...]
    source: str
    report: str
    judged: bool
    selected: str
    passed_over: bool
    exit_code: int
    harness: str
    data_key: str
    started: str
    seconds: float
    compressed: tuple[str, ...]
    measurements: tuple[Measurement, ...]

    @property
    def aside(self) -> str:
        """Why a finding of level warn stops nothing."""
        return "variant not selected" if self.passed_over else "advisory rule"

    @property
    def worst_first(self) -> list[Finding]:
        """The findings, those that stop the run before those that warn, those that pass last."""
        return sorted(self.findings, key=lambda each: (not each.stops, not each.warns))

    @property
    def counts(self) -> Counter[Status]:
        """How many blocking rules have each status."""
        return Counter(each.status for each in self.findings if each.level == "block")

    @property
    def count_line(self) -> str:
        """ "2 of 9 blocking rules do not pass, 1 advisory rule neither, 3 warnings"."""
        if not self.judged:
            return "nothing was judged"
        blocking, stopping = self.counts.total(), sum(each.stops for each in self.findings)
        advisory, warnings = sum(each.warns for each in self.findings), len(self.warnings)
        parts = [f"{blocking - stopping} of {blocking} blocking rule{'s' * (blocking != 1)} passed"]
        parts += [f"{advisory} advisory rule{'s' * (advisory != 1)} did not"] if advisory else []
        return ", ".join([*parts, f"{warnings} warning{'s' * (warnings != 1)}"])


def digest(run: Run, folder: Path | None = None) -> Digest:
    """What a run comes to. folder: that of the run; paths are relative to the working directory where they can be."""
    source = clean(str(run.asked.get("source") or "variant.yaml"), 1000)
    place = shorten_path(folder) if folder else ""
    report = "/".join(filter(None, (place, REPORT))) if _writes_report(run) else place
    judged = {id(item.verdict): item for item in prepare_verdicts(run)}
    names: Counter[tuple[str, str]] = Counter()
    worst = "; ".join(list_worst(run))
    findings = [_describe(judged[id(each)], run, source, clean(place, 1000), names, worst) for each in run.verdicts]
    if run.exit_code != 0 and not any(each.stops for each in findings):
        findings.append(_without_rules(run, source))
    passed_over = run.selected not in {"", run.name}
    if passed_over:  # what it broke keeps nothing from being shipped
        findings = [replace(each, level="warn") for each in findings]
    return Digest(
        name=clean(run.name),
        verdict=run.verdict,
        headline=verdict.headline(run),
        reason=clean(verdict.reason(run), 2000),
        failure=run.failure or "",
        comparable=clean(comparability.verdict_sentence(run.comparison), 1000) if run.comparison else "",
        warnings=tuple(f"{clean(note.topic)}: {clean(note.text, 1000)}" for note in run.warning_notes),
        stops=tuple(clean(sentence, 1000) for sentence in stops.describe_stops(run)),
        findings=tuple(findings),
        source=source,
        report=clean(report, 1000),
        judged=True,
        selected=_describe_selection(run, source),
        passed_over=passed_over,
        exit_code=run.exit_code,
        harness=run.environment.harness,
        data_key=clean(run.data_key),
        started=run.clock.started,
        seconds=sum(run.clock.seconds.values()),
        compressed=tuple(describe_variant(run)),
        measurements=run.measurements,
    )


def digest_failure(failure: Failure, folder: Path | None = None) -> Digest:
    """Why there is no run. folder: that of the run; None where the variant has no name by which there would be one."""
    source = clean(failure.source, 1000)
    faults = failure.faults or (Fault(file=failure.source, message=failure.message),)
    name = clean(failure.name)
    count = f"{len(faults)} mistakes in the files; nothing was run. The first: {faults[0].message}"
    return Digest(
        name=name,
        verdict="error",
        headline="Could not be run",
        reason=clean(failure.message if len(faults) == 1 else count, 2000),
        failure=failure.failure,
        comparable="",
        warnings=(),
        stops=(),
        findings=tuple(_describe_fault(each, failure, index) for index, each in enumerate(faults)),
        source=source,
        report=clean(f"{shorten_path(folder)}/{FAILURE_FILE}" if folder else "the output of harness check", 1000),
        judged=False,
        selected="",
        passed_over=False,
        exit_code=failure.exit_code,
        harness=failure.harness,
        data_key="",
        started=failure.at or UNKNOWN_TIME,
        seconds=0.0,
        compressed=(),
        measurements=(),
    )


def _describe_selection(run: Run, source: str) -> str:
    if not run.selected:
        return ""
    taken = "this variant" if run.selected == run.name else f"{clean(run.selected)}, not this variant"
    return f"selected: {taken}, as the smallest of {source} that passes"


def describe_variant(run: Run) -> list[str]:
    """What was made of what: the formats of the weights, the steps, the KV cache, the documents behind it."""
    reference, variant = run.reference, run.variant
    lines = [f"reference: {reference.name}", f"weights: {'; '.join(words.formats(variant.modules)) or 'as they were'}"]
    steps = asked.describe_steps(run.asked)
    lines += [f"steps: {', then '.join(steps)}"] if steps else []
    lines += [f"KV cache: {variant.cache}"] if variant.cache else []
    if data := variant.calibration:
        lines.append(f"calibrated on: {data.documents} documents of {data.source}, {data.tokens} tokens")
    if texts := variant.training:
        lines.append(f"trained on: {texts.documents} texts of {texts.source}, {texts.tokens} tokens")
    return [clean(line, 1000) for line in lines]


def _writes_report(run: Run) -> bool:
    entries: Any = run.asked.get("outputs")
    if not isinstance(entries, list | tuple):
        return True
    return any(isinstance(entry, dict) and entry.get("writer") == "report_html" for entry in entries)


def _describe(item: Judged, run: Run, source: str, place: str, names: Counter[tuple[str, str]], worst: str) -> Finding:
    found = item.verdict
    id_ = " ".join(filter(None, (found.rule, found.metric)))
    name = clean(" ".join(filter(None, (found.rule, words.add_labels(found.metric, found.labels)))))
    names[found.gate, name] += 1
    count = names[found.gate, name]
    unique = name if count == 1 else f"{name} ({count})"
    return Finding(
        gate=clean(found.gate),
        id=clean(id_),
        name=unique,
        title=clean(item.title or found.rule),
        status=found.status,
        level=found.level,
        expected=clean(item.expected, 1000),
        numbers=clean(item.found, 1000),
        reason=clean(item.because, 1000),
        why=clean(found.why, 1000),
        where=clean(found.where, 1000),
        place=_own_place(found.gate, found.where, source),
        remedy="" if found.status == "pass" else _remedy(found.status, found.failure, source, place, worst),
        fingerprint=_fingerprint((run.name, found.gate, found.rule, found.metric, *_stable(found.labels), str(count))),
    )


def _without_rules(run: Run, source: str) -> Finding:
    """What stands for a run that does not pass although no rule stops it: none was judged."""
    reason = clean(verdict.reason(run), 1000)
    return _describe_lack("the run is judged", run.name, run.verdict, reason, source, (source, 1), "usage")


def _describe_fault(fault: Fault, failure: Failure, index: int) -> Finding:
    """What stands for one reason why there is no run."""
    name = "the run is made" if index == 0 else f"the run is made ({index + 1})"
    place = (clean(shorten_path(Path(fault.file)) if fault.file else "variant.yaml", 1000), fault.line)
    where = f"{place[0]}:{place[1]}"
    reason = clean(" ".join(fault.message.split()), 1000)
    return _describe_lack(name, failure.name, "error", reason, where, place, failure.failure)


def _describe_lack(
    name: str, variant: str, status: Status, reason: str, where: str, place: tuple[str, int], failure: FailureClass
) -> Finding:
    """A finding of no rule of a gate: the run, or its verdict, is missing."""
    return Finding(
        gate=OWN_GATE,
        id=name.partition(" (")[0],
        name=name,
        title=name.partition(" (")[0],
        status=status,
        level="block",
        expected="",
        numbers="",
        reason=reason,
        why="",
        where=where,
        place=place,
        remedy=REMEDIES[failure][1],
        fingerprint=_fingerprint((variant, OWN_GATE, name)),
    )


def _remedy(status: Status, failure: FailureClass | None, source: str, place: str, worst: str) -> str:
    if status == "inconclusive":
        command = f"harness plan {source}{f' --run {place}' if place else ''}"
        return f"more documents or items decide it: {command} says how many"
    if status != "fail" and failure == "quality":  # nothing was lost: something was not measured
        failure = "usage"
    section, remedy = REMEDIES[failure or "usage"]
    here = f"; look first at {worst}" if worst and section == CAUSE and status == "fail" else ""
    return f"section {section} of the report: {remedy}{here}" if section else remedy


def _own_place(gate: str, where: str, source: str) -> tuple[str, int]:
    file, _, line = where.rpartition(":")
    bundled = file == f"gates/{gate}.yaml" and gate in bundled_names("gates")
    if not file or not line.isdecimal() or bundled:
        return source, 1
    return clean(file, 1000), max(1, int(line))


def _stable(labels: Mapping[str, str]) -> Iterable[str]:
    """The labels that name what was measured. Of those that name what was found (the worst document), the keys."""
    for key, value in sorted(labels.items()):
        yield key if key.startswith("worst") else f"{key}={value}"


def _fingerprint(parts: Iterable[str]) -> str:
    text = "\0".join(parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
