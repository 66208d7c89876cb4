"""results.sarif: what SARIF 2.1.0 and GitHub ask, and a result at the line of the rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.records import Failure, Fault, Run
from harness.report.digest import digest, digest_failure
from harness.writers.sarif import MOST_RESULTS, Sarif, encode_sarif
from tests.helpers.hostile import HOSTILE, rename_everything
from tests.helpers.made_run import Made
from tests.helpers.made_tables import MadeTables
from tests.helpers.npm import find_package


def moved(run: Run, where: str) -> Run:
    """The run with its rules in a gate file of the user's own."""
    verdicts = tuple(
        each.model_copy(update={"where": f"{where}:{line}"}) for line, each in enumerate(run.verdicts, start=11)
    )
    return run.model_copy(update={"verdicts": verdicts})


def results(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = encode_sarif(digest(run, Path("runs/x")))["runs"][0]["results"]
    return found


def test_a_result_stands_at_the_line_of_its_rule(made: dict[str, Made]) -> None:
    run = moved(made["fail"].run, "my gates/ünder.yaml")
    found = {each["properties"]["where"]: each["locations"][0]["physicalLocation"] for each in results(run)}
    broken = [each.where for each in run.verdicts if each.status != "pass"]
    assert sorted(found) == sorted(broken)
    for where, location in found.items():
        assert location["artifactLocation"] == {"uri": "my%20gates/%C3%BCnder.yaml", "uriBaseId": "SRCROOT"}
        assert location["region"]["startLine"] == int(where.rpartition(":")[2])


def test_a_bundled_gate_is_shown_at_the_variant_file(made: dict[str, Made]) -> None:
    (location, *_) = (each["locations"][0]["physicalLocation"] for each in results(made["fail"].run))
    assert location == {
        "artifactLocation": {"uri": "variant.yaml", "uriBaseId": "SRCROOT"},
        "region": {"startLine": 1},
    }


@pytest.mark.parametrize("verdict", ["fail", "inconclusive", "error"])
def test_what_stops_a_run_is_an_error_and_nothing_else_is(made: dict[str, Made], verdict: str) -> None:
    run = made[verdict].run
    stopping = [each for each in run.verdicts if each.level == "block" and each.status != "pass"]
    assert [each["level"] for each in results(run)].count("error") == len(stopping) > 0


def test_a_run_that_passes_has_no_error(made: dict[str, Made]) -> None:
    assert {each["level"] for each in results(made["pass"].run)} <= {"warning"}


def test_the_fingerprint_is_that_of_the_rule_not_of_number_or_line(made: dict[str, Made]) -> None:
    before = made["fail"].run
    other = [each.model_copy(update={"found": "7", "because": "x"}) for each in before.verdicts]
    after = moved(before.model_copy(update={"verdicts": tuple(other)}), "gates/ship.yaml")

    def prints(run: Run) -> list[str]:
        return [each["partialFingerprints"]["primaryLocationLineHash"] for each in results(run)]

    assert prints(before) == prints(after)
    assert len(set(prints(before))) == len(prints(before))
    renamed = before.model_copy(update={"name": "another"})
    assert not set(prints(before)) & set(prints(renamed))


def test_the_limits_of_github(made: dict[str, Made]) -> None:
    run = rename_everything("x" * 300)
    run = run.model_copy(update={"verdicts": run.verdicts * 1_010})
    log = encode_sarif(digest(run, Path("runs/x")))["runs"][0]
    assert len(log["results"]) == MOST_RESULTS
    assert "more rules do not pass" in log["invocations"][0]["toolExecutionNotifications"][-1]["message"]["text"]
    for rule in log["tool"]["driver"]["rules"]:
        assert max(len(rule["id"]), len(rule["name"])) <= 255
        for key in ("shortDescription", "fullDescription", "help"):
            assert len(rule[key]["text"]) <= 1_024
    for result in log["results"]:
        assert log["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


@pytest.mark.parametrize("text", ["plain", *(text for text in HOSTILE if text)])
def test_another_reader_of_sarif_accepts_it(tmp_path: Path, text: str) -> None:
    sarif = pytest.importorskip("sarif_pydantic", reason="needs sarif-pydantic, of the extra test")
    path = Sarif().write(rename_everything(text), MadeTables({}), tmp_path)
    log = sarif.Sarif.model_validate(json.loads(path.read_bytes()))
    assert [each.level.value for each in log.runs[0].results].count("error") > 0


def check_against_schema(log: dict[str, Any]) -> None:
    """Hold a log against the schema of SARIF 2.1.0 itself; skips without it."""
    schema_file = find_package("@microsoft/jest-sarif") / "lib" / "schemas" / "sarif-2.1.0-rtm.5.json"
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, of the extra test")
    jsonschema.Draft4Validator(json.loads(schema_file.read_text())).validate(log)


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive", "error"])
def test_the_schema_of_sarif_accepts_every_verdict(made: dict[str, Made], verdict: str) -> None:
    check_against_schema(encode_sarif(digest(made[verdict].run, Path("runs/x"))))


@pytest.mark.parametrize("text", ["plain", *(text for text in HOSTILE if text)])
def test_the_schema_of_sarif_accepts_every_name(text: str) -> None:
    check_against_schema(encode_sarif(digest(rename_everything(text), Path("runs/x"))))


def test_the_schema_of_sarif_accepts_a_run_that_could_not_be_made() -> None:
    fault = Fault(file="my gates/a.yaml", line=3, message="found nothing")
    failure = Failure(name="x", failure="usage", message="found nothing", source="a.yaml", faults=(fault, fault))
    log = encode_sarif(digest_failure(failure, Path("runs/x")))
    check_against_schema(log)
    (invocation,) = log["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is False
    assert [each["level"] for each in invocation["toolExecutionNotifications"]] == ["error", "error"]
