"""junit.xml: the verdicts in the format in which CI servers read the results of tests.

The elements and attributes are those of the schema of Apache Ant's JUnit reports, which Jenkins and GitLab read, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, NamedTuple
from xml.etree import ElementTree

from harness.errors import WriteError
from harness.records import Run, Verdict
from harness.report import words
from harness.report.display import clean
from harness.report.verdict import reason
from harness.system.files import write_atomic
from harness.tables.access import Tables
from harness.writers import Writer

_BLOCKING = {"pass": "", "fail": "failure", "inconclusive": "failure"}
"""The element that a blocking rule leaves in its test case by its status; any other status is an ``error``."""


class Junit(Writer):
    """junit.xml: one test case a rule, for CI servers; red exactly where the run did not pass."""

    file_name: ClassVar[str] = "junit.xml"

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write junit.xml atomically. Raises WriteError."""
        path = folder / self.file_name
        write_atomic(path, encode_junit(run))
        return path


class _TestCase(NamedTuple):
    """One test case. element: "" (passed), "failure", "error" or "skipped"; type: the status of the rule."""

    name: str
    element: str
    type: str
    message: str
    text: str


def encode_junit(run: Run) -> bytes:
    """The verdicts of a run as JUnit XML in UTF-8: one test suite a gate, one test case a verdict.

    A blocking rule that is inconclusive is a failure of the type ``inconclusive``. An advisory rule that does not pass
    is skipped, with its status in the message: it must not stop a pipeline and must not count as passed. Failures and
    errors together are none if and only if the exit code of the run is 0. The time of every suite is that of the run.
    Raises WriteError where the clock of the run is not a date.
    """
    gates: dict[str, list[_TestCase]] = {}
    for verdict in run.verdicts:
        gates.setdefault(verdict.gate, []).append(_case(verdict))
    if run.exit_code != 0 and not any(_is_red(case) for cases in gates.values() for case in cases):
        gates.setdefault("harness", []).append(_TestCase("the run is judged", "error", run.verdict, reason(run), ""))
    root = ElementTree.Element("testsuites")
    for index, (gate, cases) in enumerate(gates.items()):
        _add_suite(root, run, index, gate, cases)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _case(verdict: Verdict) -> _TestCase:
    name = " ".join(filter(None, (verdict.rule, words.add_labels(verdict.metric, verdict.labels))))
    lines = [f"expected: {verdict.expected}", f"found: {verdict.found}", verdict.because, verdict.why, verdict.where]
    text = "\n".join(clean(line, 2000) for line in lines if line)
    if verdict.level == "warn":
        element = "" if verdict.status == "pass" else "skipped"
        return _TestCase(name, element, verdict.status, f"advisory rule, {verdict.status}: {verdict.because}", text)
    return _TestCase(name, _BLOCKING.get(verdict.status, "error"), verdict.status, verdict.because, text)


def _is_red(case: _TestCase) -> bool:
    return case.element in {"failure", "error"}


def _add_suite(root: ElementTree.Element, run: Run, index: int, gate: str, cases: Sequence[_TestCase]) -> None:
    counts = Counter(case.element for case in cases)
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=clean(gate) or "gate",
        package=clean(run.name),
        id=str(index),
        timestamp=_start_time(run),
        hostname="localhost",
        tests=str(len(cases)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
        time=f"{sum(run.clock.seconds.values()):.3f}",
    )
    facts = {
        "verdict": run.verdict,
        "failure": run.failure or "",
        "warnings": str(run.warnings),
        "harness": run.environment.harness,
        "data_key": run.data_key,
    }
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in facts.items():
        ElementTree.SubElement(properties, "property", name=key, value=clean(value))
    names: Counter[str] = Counter()
    for case in cases:
        name = clean(case.name)
        names[name] += 1
        unique = name if names[name] == 1 else f"{name} ({names[name]})"
        classname = f"{clean(run.name)}.{clean(gate)}"
        element = ElementTree.SubElement(suite, "testcase", name=unique, classname=classname, time="0")
        if case.element:
            kind = {} if case.element == "skipped" else {"type": case.type}
            details = kind | {"message": clean(case.message, 2000)}
            ElementTree.SubElement(element, case.element, details).text = case.text
    for stream in ("system-out", "system-err"):
        ElementTree.SubElement(suite, stream)


def _start_time(run: Run) -> str:
    """When the run began, in UTC and without a zone, as the schema asks."""
    try:
        started = datetime.fromisoformat(run.clock.started)
    except ValueError as error:
        raise WriteError(f"run.json: clock.started is {run.clock.started!r}, expected an ISO 8601 date") from error
    return f"{started.astimezone(UTC):%Y-%m-%dT%H:%M:%S}"
