"""gl-code-quality.json: the keys that GitLab reads, and fingerprints by which it compares two branches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.records import Run
from harness.writers.gitlab_code_quality import GitlabCodeQuality
from tests.helpers.made_run import Made
from tests.helpers.made_tables import MadeTables


def entries(run: Run, folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(GitlabCodeQuality().write(run, MadeTables({}), folder).read_bytes())
    return found


def test_every_rule_that_does_not_pass_is_an_entry(made: dict[str, Made], tmp_path: Path) -> None:
    run = made["fail"].run
    found = entries(run, tmp_path)
    assert len(found) == sum(each.status != "pass" for each in run.verdicts)
    for each in found:
        assert set(each) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert each["severity"] in {"info", "minor", "major", "critical", "blocker"}
        assert each["location"]["lines"]["begin"] >= 1
        assert not each["location"]["path"].startswith((".", "/"))
    stopping = sum(each.level == "block" and each.status != "pass" for each in run.verdicts)
    assert [each["severity"] for each in found].count("blocker") == stopping


def test_inconclusive_blocks_and_a_pass_has_no_blocker(made: dict[str, Made], tmp_path: Path) -> None:
    assert "blocker" in {each["severity"] for each in entries(made["inconclusive"].run, tmp_path)}
    assert "blocker" not in {each["severity"] for each in entries(made["pass"].run, tmp_path)}


def test_a_run_without_rules_is_a_blocker(made: dict[str, Made], tmp_path: Path) -> None:
    run = made["error"].run.model_copy(update={"verdicts": ()})
    (entry,) = entries(run, tmp_path)
    assert entry["severity"] == "blocker"
    assert "No blocking rule was judged" in entry["description"]


def test_the_fingerprint_changes_with_neither_line_nor_value(made: dict[str, Made], tmp_path: Path) -> None:
    run = made["fail"].run
    changed = tuple(
        each.model_copy(
            update={"where": f"my.yaml:{index + 90}", "found": "1", "labels": {"worst_document": str(index)}}
        )
        for index, each in enumerate(run.verdicts)
    )
    same = tuple(each.model_copy(update={"labels": {"worst_document": "d"}}) for each in run.verdicts)
    before = entries(run.model_copy(update={"verdicts": same}), tmp_path)
    after = entries(run.model_copy(update={"verdicts": changed}), tmp_path)
    assert [each["fingerprint"] for each in before] == [each["fingerprint"] for each in after]
    assert len({each["fingerprint"] for each in before}) == len(before)
