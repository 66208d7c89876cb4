"""gl-code-quality.json: rules that do not pass, for the code quality widget of a merge request in GitLab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from harness.records import Run
from harness.report.digest import Digest, Finding, digest
from harness.system.files import write_atomic
from harness.tables.access import Tables
from harness.writers import Writer


class GitlabCodeQuality(Writer):
    """gl-code-quality.json: every rule that does not pass, for the code quality report of GitLab."""

    file_name: ClassVar[str] = "gl-code-quality.json"

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write gl-code-quality.json atomically. Raises WriteError."""
        path = folder / self.file_name
        told = digest(run, folder)
        entries = [_entry(each, told) for each in told.worst_first if each.status != "pass"]
        write_atomic(path, (json.dumps(entries, indent=2, ensure_ascii=False) + "\n").encode())
        return path


def _entry(each: Finding, told: Digest) -> dict[str, Any]:
    """One degradation. GitLab compares two branches by the fingerprint, which has no line and no number."""
    file, line = each.place
    texts = (f"{told.name}: {each.name} {each.status}: {each.sentence}", each.why, each.remedy, each.where, told.report)
    return {
        "description": " | ".join(filter(None, texts)),
        "check_name": each.id,
        "fingerprint": each.fingerprint,
        "severity": "blocker" if each.stops else "minor",
        "location": {"path": file.removeprefix("./"), "lines": {"begin": line}},
    }
