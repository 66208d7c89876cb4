"""junit.xml: red exactly where the run did not pass, of the form that CI servers read, harmless whatever it names."""

from __future__ import annotations

import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from harness.errors import WriteError
from harness.records import Level, Run, Status, Verdict
from harness.records.conclusion import overall
from harness.report.digest import digest
from harness.writers.junit import Junit, encode_junit
from tests.helpers.made_run import Made
from tests.helpers.made_tables import MadeTables

CASES = list(product(get_args(Level), get_args(Status)))


def parsed(run: Run) -> Element:
    return ElementTree.fromstring(encode_junit(digest(run)))  # noqa: S314 - written by this program a moment ago


def verdict(level: Any, status: Any, **fields: Any) -> Verdict:
    given = {
        "gate": "ship", "rule": "at_most", "metric": "divergence.kl_mean", "labels": {"suite": "core"},
        "status": status, "expected": "at most 0.02", "found": "0.08", "because": "the whole interval is above 0.02",
        "level": level, "where": "gates/ship.yaml:7", "why": "above it, texts differ",
    }  # fmt: skip
    return Verdict.model_validate(given | fields)


def judged(made: Made, *verdicts: Verdict) -> Run:
    """The run with these verdicts and what they come to."""
    status, code = overall(verdicts)
    return made.run.model_copy(update={"verdicts": verdicts, "verdict": status, "exit_code": code})


def element_of(case: Element) -> str:
    return case[0].tag if len(case) else ""


# What counts as what


@pytest.mark.parametrize(
    ("level", "status", "element"),
    [
        ("block", "pass", ""),
        ("block", "fail", "failure"),
        ("block", "inconclusive", "failure"),
        ("block", "error", "error"),
        ("block", "skipped", "error"),
        ("warn", "pass", ""),
        ("warn", "fail", "skipped"),
        ("warn", "inconclusive", "skipped"),
        ("warn", "error", "skipped"),
        ("warn", "skipped", "skipped"),
    ],
)
def test_every_status_has_its_element(made: dict[str, Made], level: str, status: str, element: str) -> None:
    run = judged(made["pass"], verdict(level, status), verdict("block", "pass", rule="other"))
    case = next(parsed(run).iter("testcase"))
    assert element_of(case) == element
    if element:
        assert case[0].get("type") == (None if element == "skipped" else status)
        assert level == "block" or status in str(case[0].get("message"))
        assert "the whole interval is above 0.02" in str(case[0].get("message"))
        for line in ("expected: at most 0.02", "found: 0.08", "above it, texts differ", "gates/ship.yaml:7"):
            assert line in str(case[0].text)


@pytest.mark.parametrize("first", CASES)
@pytest.mark.parametrize("second", CASES)
def test_it_is_red_exactly_where_the_run_did_not_pass(
    made: dict[str, Made], first: tuple[Level, Status], second: tuple[Level, Status]
) -> None:
    run = judged(made["pass"], verdict(*first), verdict(*second))
    red = sum(int(str(s.get("failures"))) + int(str(s.get("errors"))) for s in parsed(run))
    assert (red == 0) == (run.exit_code == 0)


def test_a_run_without_a_blocking_rule_is_an_error(made: dict[str, Made]) -> None:
    (suite,) = parsed(judged(made["pass"]))
    (case,) = suite.iter("testcase")
    assert element_of(case) == "error"
    assert "No blocking rule was judged" in str(case[0].get("message"))


# Form


def test_one_suite_a_gate_and_one_case_a_rule(made: dict[str, Made]) -> None:
    run = made["fail"].run
    root = parsed(run)
    assert [suite.get("name") for suite in root] == list(dict.fromkeys(each.gate for each in run.verdicts))
    assert len(list(root.iter("testcase"))) == len(run.verdicts)
    names = [case.get("name") for case in root.iter("testcase")]
    assert "not_worse perplexity.ratio" in names
    assert root[0].get("timestamp") == "2026-11-22T08:00:00"


def test_rules_of_one_name_stay_apart(made: dict[str, Made]) -> None:
    root = parsed(judged(made["pass"], verdict("block", "pass"), verdict("block", "pass"), verdict("warn", "pass")))
    first = "at_most divergence.kl_mean{suite=core}"
    assert [case.get("name") for case in root.iter("testcase")] == [first, f"{first} (2)", f"{first} (3)"]


SUITE = {
    "name": r".+", "package": r".*", "id": r"\d+", "timestamp": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "hostname": r".+",
    "tests": r"\d+", "failures": r"\d+", "errors": r"\d+", "skipped": r"\d+", "time": r"\d+(\.\d+)?",
}  # fmt: skip
CASE = {"name": r".+", "classname": r".+", "time": r"\d+(\.\d+)?"}


def check_form(root: Element) -> None:
    """What the schema of Ant's JUnit reports asks: these elements in this order with these attributes, true counts."""

    def check_attributes(element: Element, patterns: dict[str, str]) -> None:
        assert element.attrib.keys() == patterns.keys(), element.tag
        for key, pattern in patterns.items():
            assert re.fullmatch(pattern, element.attrib[key]), (element.tag, key, element.attrib[key])

    assert (root.tag, root.attrib) == ("testsuites", {})
    assert len(root) > 0
    for index, suite in enumerate(root):
        check_attributes(suite, SUITE)
        assert (suite.tag, suite.get("id")) == ("testsuite", str(index))
        order = [child.tag for child in suite]
        cases = suite.findall("testcase")
        assert order == ["properties", *["testcase"] * len(cases), "system-out", "system-err"]
        for entry in suite[0]:
            check_attributes(entry, {"name": ".+", "value": ".*"})
        found = Counter(element_of(case) for case in cases)
        counted = {"failure": "failures", "error": "errors", "skipped": "skipped"}
        assert {key: str(found[key]) for key in counted} == {key: suite.get(name) for key, name in counted.items()}
        assert suite.get("tests") == str(len(cases))
        names = [(case.get("classname"), case.get("name")) for case in cases]
        assert len(set(names)) == len(names)
        for case in cases:
            check_attributes(case, CASE)
            assert len(case) <= 1
            for child in case:
                assert child.tag in counted
                kind = {} if child.tag == "skipped" else {"type": ".+"}
                check_attributes(child, kind | {"message": ".*"})


@pytest.mark.parametrize("status", ["pass", "fail", "inconclusive", "error"])
def test_the_form_is_the_one_that_ci_servers_read(made: dict[str, Made], tmp_path: Path, status: str) -> None:
    path = Junit().write(made[status].run, MadeTables({}), tmp_path)
    assert path == tmp_path / "junit.xml"
    check_form(ElementTree.parse(path).getroot())  # noqa: S314 - written by this program a moment ago
    assert path.read_bytes() == encode_junit(digest(made[status].run, tmp_path))


HOSTILE = "]]></failure><x y='1\">&amp;\x00\x1b[31m\ufffe\ud800\u202e\r\n hf_" + "a" * 30


def test_hostile_names_stay_text(made: dict[str, Made]) -> None:
    texts = dict.fromkeys(("gate", "rule", "metric", "expected", "found", "because", "where", "why"), HOSTILE)
    run = judged(made["fail"], verdict("block", "fail", labels={HOSTILE: HOSTILE}, **texts))
    run = run.model_copy(update={"name": HOSTILE, "data_key": HOSTILE})
    root = parsed(run)
    check_form(root)
    (case,) = root.iter("testcase")
    assert "]]></failure><x y='1\">&amp;" in str(case[0].text)
    text = encode_junit(digest(run)).decode("utf-8")
    assert not set(text) & {"\x00", "\x1b", "\ufffe", "\u202e", "\r"}
    assert "hf_aaa" not in text


def test_a_clock_that_is_no_date_is_named(made: dict[str, Made]) -> None:
    run = made["pass"].run
    broken = run.model_copy(update={"clock": run.clock.model_copy(update={"started": "yesterday"})})
    with pytest.raises(WriteError, match=r"clock.started is 'yesterday'"):
        encode_junit(digest(broken))


def test_another_reader_counts_what_stops_the_run_and_finds_the_reason(made: dict[str, Made], tmp_path: Path) -> None:
    junitparser = pytest.importorskip("junitparser", reason="needs junitparser, of the extra test")
    for verdict_, example in made.items():
        read = junitparser.JUnitXml.fromfile(str(Junit().write(example.run, example.tables, tmp_path)))
        stopping = [each for each in example.run.verdicts if each.level == "block" and each.status != "pass"]
        assert read.failures + read.errors == len(stopping), verdict_
        passed = [case for suite in read for case in suite if case.is_passed]
        assert len(passed) == sum(each.status == "pass" for each in example.run.verdicts)
