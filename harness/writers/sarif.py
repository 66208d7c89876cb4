"""results.sarif: rules that do not pass in SARIF 2.1.0, each at its line in the gate file.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0; the limits are GitHub's for uploads.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar
from urllib.parse import quote

from harness import __version__
from harness.report.digest import Digest, Finding
from harness.writers import DigestWriter

MOST_RESULTS = 5_000
"""GitHub shows no more results of a run."""
MOST_CHARACTERS = 1_000
"""GitHub takes 1,024 for the text of a rule."""
MOST_NOTIFICATIONS = 100
"""Of errors, and of warnings."""
MOST_NAME = 255
"""Of the id and the name of a rule."""


class Sarif(DigestWriter):
    """results.sarif: every rule that does not pass, at its line in the gate file, for code scanning."""

    file_name: ClassVar[str] = "results.sarif"

    def encode(self, told: Digest) -> bytes:
        """The log as JSON in UTF-8."""
        return f"{json.dumps(encode_sarif(told), indent=2, ensure_ascii=False)}\n".encode()


def encode_sarif(told: Digest) -> dict[str, Any]:
    """The SARIF log of a run: a result for every rule that does not pass, those that stop the run first."""
    findings = [each for each in told.worst_first if each.status != "pass"]
    shown = findings[:MOST_RESULTS]
    rules = {each.id: each for each in reversed(shown)}
    ids = sorted(rules)
    indices = {id_: index for index, id_ in enumerate(ids)}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "lm-shipcheck",
                        "version": told.harness or __version__,
                        "rules": [_rule(rules[id_]) for id_ in ids],
                    }
                },
                "automationDetails": {"id": f"lm-shipcheck/{told.name}/"},
                "originalUriBaseIds": {"SRCROOT": {"description": {"text": "where harness check was started"}}},
                "invocations": [_invocation(told, len(findings) - len(shown))],
                "results": [_result(each, indices[each.id], told) for each in shown],
                "properties": {
                    "verdict": told.verdict,
                    "classOfFailure": told.failure,
                    "report": told.report,
                    "selected": told.selected,
                },
            }
        ],
    }


def _rule(each: Finding) -> dict[str, Any]:
    why = _cut(each.why or each.title)
    return {
        "id": _name(each.id),
        "name": _name(each.title),
        "shortDescription": {"text": _cut(f"{each.title}: {each.expected}" if each.expected else each.title)},
        "fullDescription": {"text": why},
        "help": {"text": _cut(f"{each.why} {each.remedy}".strip() or each.title)},
        "defaultConfiguration": {"level": "error" if each.level == "block" else "warning"},
    }


def _result(each: Finding, index: int, told: Digest) -> dict[str, Any]:
    texts = (f"{each.name} ({each.status}): {each.sentence}", each.remedy, f"Report: {told.report}")
    return {
        "ruleId": _name(each.id),
        "ruleIndex": index,
        "level": "error" if each.stops else "warning",
        "message": {"text": ". ".join(filter(None, texts))},
        "locations": [{"physicalLocation": _location(each.place)}],
        "partialFingerprints": {"primaryLocationLineHash": f"{each.fingerprint}:1"},
        "properties": {"status": each.status, "gate": each.gate, "where": each.where},
    }


def _location(place: tuple[str, int]) -> dict[str, Any]:
    file, line = place
    uri = quote(file.removeprefix("./"))
    artifact = {"uri": f"file://{uri}"} if uri.startswith("/") else {"uri": uri, "uriBaseId": "SRCROOT"}
    return {"artifactLocation": artifact, "region": {"startLine": line}}


def _invocation(told: Digest, more: int) -> dict[str, Any]:
    """How it went. What could not be run or judged is a notification, too: results are of a tool that worked."""
    lost = [each for each in told.findings if each.stops and each.status not in {"fail", "inconclusive"}]
    errors = [
        {
            "level": "error",
            "message": {"text": _cut(f"{told.failure or each.status}: {each.reason or each.sentence}")},
            "locations": [{"physicalLocation": _location(each.place)}],
        }
        for each in lost
    ]
    texts = [*told.warnings, *([f"{more} more rules do not pass; all of them: {told.report}"] if more else [])]
    notes = [{"level": "warning", "message": {"text": _cut(text)}} for text in texts]
    return {
        "executionSuccessful": told.verdict != "error",
        "exitCode": told.exit_code,
        "toolExecutionNotifications": [*errors[:MOST_NOTIFICATIONS], *notes[:MOST_NOTIFICATIONS]],
    }


def _cut(text: str, most: int = MOST_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _name(text: str) -> str:
    return _cut(text, MOST_NAME) or "rule"
