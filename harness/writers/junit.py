"""junit.xml: the verdicts in the format in which CI servers read the results of tests.

The elements and attributes are those of the schema of Apache Ant's JUnit reports, which Jenkins and GitLab read, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import ClassVar
from xml.etree import ElementTree

from harness.errors import WriteError
from harness.report.digest import Digest, Finding
from harness.report.display import clean
from harness.writers import DigestWriter

_BLOCKING = {"pass": "", "fail": "failure", "inconclusive": "failure"}
"""The element that a blocking rule leaves in its test case by its status; any other status is an ``error``."""


_SERVERS = ("GITLAB_CI", "JENKINS_URL", "TF_BUILD")
"""Environment variables of the CI servers that show JUnit files: GitLab, Jenkins, Azure Pipelines."""


class Junit(DigestWriter):
    """junit.xml: one test case a rule; red exactly where the run did not pass; on by itself where a server reads it."""

    file_name: ClassVar[str] = "junit.xml"

    @classmethod
    def suits(cls, environment: Mapping[str, str]) -> bool:
        """Whether a CI server that shows such files runs it."""
        return any(environment.get(each) for each in _SERVERS)

    def encode(self, told: Digest) -> bytes:
        """The suites as XML."""
        return encode_junit(told)


def encode_junit(told: Digest) -> bytes:
    """The verdicts of a run as JUnit XML in UTF-8: one test suite a gate, one test case a verdict.

    A blocking rule that is inconclusive is a failure of the type ``inconclusive``. An advisory rule that does not pass
    is skipped, with its status in the message: it must not stop a pipeline and must not count as passed; so is every
    rule of a variant in place of which another was selected. Otherwise failures and errors together are none if and
    only if the exit code of the run is 0. The time of every suite is that of the run.
    Raises WriteError where the clock of the run is not a date.
    """
    gates: dict[str, list[Finding]] = {}
    for finding in told.findings:
        gates.setdefault(finding.gate, []).append(finding)
    root = ElementTree.Element("testsuites")
    for index, (gate, findings) in enumerate(gates.items()):
        _add_suite(root, told, index, gate, findings)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _element(finding: Finding) -> str:
    """What the test case holds: nothing (passed), a ``failure``, an ``error``, or that it was ``skipped``."""
    if finding.level == "warn":
        return "" if finding.status == "pass" else "skipped"
    return _BLOCKING.get(finding.status, "error")


def _add_suite(root: ElementTree.Element, told: Digest, index: int, gate: str, findings: Sequence[Finding]) -> None:
    counts = Counter(_element(finding) for finding in findings)
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=gate or "gate",
        package=told.name,
        id=str(index),
        timestamp=_start_time(told),
        hostname="localhost",
        tests=str(len(findings)),
        failures=str(counts["failure"]),
        errors=str(counts["error"]),
        skipped=str(counts["skipped"]),
        time=f"{told.seconds:.3f}",
    )
    facts = {
        "verdict": told.verdict,
        "failure": told.failure,
        "reason": told.reason,
        "warnings": str(len(told.warnings)),
        **({"selected": told.selected} if told.selected else {}),
        "report": told.report,
        "harness": told.harness,
        "data_key": told.data_key,
    }
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in facts.items():
        ElementTree.SubElement(properties, "property", name=key, value=clean(value, 2000))
    for finding in findings:
        case = ElementTree.SubElement(suite, "testcase", name=finding.name, classname=f"{told.name}.{gate}", time="0")
        if element := _element(finding):
            kind = {} if element == "skipped" else {"type": finding.status}
            advisory = f"{told.aside}, {finding.status}: " if finding.level == "warn" else ""
            details = kind | {"message": f"{advisory}{finding.sentence}"}
            ElementTree.SubElement(case, element, details).text = _text(finding, told)
    ElementTree.SubElement(suite, "system-out").text = _tell(told)
    ElementTree.SubElement(suite, "system-err")


def _tell(told: Digest) -> str:
    """What the verdict must not be read without, for who has only this file."""
    lines = [f"{told.headline}: {told.reason}", told.selected, told.comparable, *told.stops]
    lines += [*(f"warning: {each}" for each in told.warnings), *told.compressed]
    return "\n".join(filter(None, lines))


def _text(finding: Finding, told: Digest) -> str:
    parts = {
        "metric": finding.title,
        "expected": finding.expected,
        "found": finding.numbers,
        "reason": finding.reason,
        "limit because": finding.why,
        "rule": finding.where,
        "what to do": finding.remedy,
        "report": told.report,
    }
    return "\n".join(f"{key}: {value}" for key, value in parts.items() if value)


def _start_time(told: Digest) -> str:
    """When the run began, in UTC and without a zone, as the schema asks."""
    try:
        started = datetime.fromisoformat(told.started)
    except ValueError as error:
        raise WriteError(f"run.json: clock.started is {told.started!r}, expected an ISO 8601 date") from error
    return f"{started.astimezone(UTC):%Y-%m-%dT%H:%M:%S}"
