"""gl-code-quality.json: rules that do not pass, for the code quality widget of a merge request in GitLab."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from harness.report.digest import Digest, Finding
from harness.writers import DigestWriter


class GitlabCodeQuality(DigestWriter):
    """gl-code-quality.json: rules that do not pass, for the code quality report of GitLab, where it is on by itself."""

    file_name: ClassVar[str] = "gl-code-quality.json"

    @classmethod
    def suits(cls, environment: Mapping[str, str]) -> bool:
        """Whether a GitLab job runs it."""
        return environment.get("GITLAB_CI") == "true"

    def encode(self, told: Digest) -> bytes:
        """The entries as JSON in UTF-8."""
        entries = [_entry(each, told) for each in told.worst_first if each.status != "pass"]
        return (json.dumps(entries, indent=2, ensure_ascii=False) + "\n").encode()


def _entry(each: Finding, told: Digest) -> dict[str, Any]:
    """One degradation. GitLab compares two branches by the fingerprint, which has no line and no number."""
    file, line = each.place
    texts = (
        f"{told.name}: {each.name} ({each.status}): {each.sentence}",
        each.why,
        each.remedy,
        each.where,
        told.report,
    )
    return {
        "description": " | ".join(filter(None, texts)),
        "check_name": each.id,
        "fingerprint": each.fingerprint,
        "severity": "blocker" if each.stops else "minor",
        "location": {"path": file.removeprefix("./"), "lines": {"begin": line}},
    }
