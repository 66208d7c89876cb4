"""What a check leaves on disk: a result that passes with all of its outputs, or none; somebody else's files stay."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

import harness.running.publishing
from harness.check import MARKER, check
from harness.errors import HarnessError, PlanError, TableError, WriteError
from harness.system import files
from harness.system.held_folder import hold
from harness.terminal import Terminal
from harness.writers.report_html import ReportHtml
from tests.helpers.tiny_models import save, tiny_llama

VARIANT = """\
name: {name}
reference: {{model: ./model}}
variant: {{compress: [{{backend: round_to_nearest, bits: 8}}]}}
suites: [./suite.yaml]
gates: [./gate.yaml]
outputs: [junit, report_html]
"""


class KilledError(BaseException):
    """The process is dead."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    save(tiny_llama(), folder / "model")
    (folder / "suite.yaml").write_text("measures: [memory]\n")
    (folder / "gate.yaml").write_text("rules: [{rule: at_most, metric: memory.bits_per_weight, limit: 99, why: any}]\n")
    for name in ("a", "b"):
        (folder / f"{name}.yaml").write_text(VARIANT.format(name=name))
    return folder


def run(desk: Path, out: Path, *names: str) -> tuple[int, str]:
    said = io.StringIO()
    code = check([desk / f"{name}.yaml" for name in names], out, Terminal(Console(file=said, width=1000)))
    return code, said.getvalue()


def results(out: Path, name: str = "*") -> dict[str, bytes]:
    """The results in all run folders, or in that of one variant: run.json and outputs."""
    return {str(path): path.read_bytes() for path in sorted(out.glob(f"{name}/*.*")) if path.name != MARKER}


def check_no_result(folder: Path, message: str) -> None:
    """Nothing in the folder of a run is a result: there is only word of why there is none, which never passes."""
    assert {path.name for path in folder.glob("*.*")} - {MARKER} == {"failure.json", "junit.xml"}
    assert message in (folder / "failure.json").read_text()
    suites = list(ElementTree.parse(folder / "junit.xml").getroot())  # noqa: S314 - written a moment ago
    cases = [case for suite in suites for case in suite.iter("testcase")]
    assert [[child.tag for child in case] for case in cases] == [["error"]] * len(cases)
    assert len(cases) == sum(int(str(suite.get("errors"))) for suite in suites) > 0
    assert message in (folder / "junit.xml").read_text()


def verdict(out: Path) -> tuple[str, int]:
    content: dict[str, Any] = json.loads((out / "a" / "run.json").read_text())
    return content["verdict"], content["exit_code"]


def refuse(*_: object) -> None:
    raise WriteError("the disk is full")


def die(*_: object) -> None:
    raise KilledError


def test_a_run_that_the_lock_refuses_deletes_nothing_of_any_variant(desk: Path, tmp_path: Path) -> None:
    assert run(desk, tmp_path, "a", "b")[0] == 0
    before = results(tmp_path)
    assert len(before) == 6
    lock = hold(tmp_path / "b", MARKER)
    with pytest.raises(HarnessError, match=f"in use by process {os.getpid()}"):
        run(desk, tmp_path, "a", "b")
    assert results(tmp_path) == before
    os.close(lock)
    assert run(desk, tmp_path, "a", "b")[0] == 0


def test_the_lock_is_held_until_the_last_output_is_written(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    def try_to_enter(path: Path, content: bytes) -> None:
        with pytest.raises(WriteError, match="in use by process"):
            os.close(hold(path.parent, MARKER))
        refused.append(path.name)
        files.write_atomic(path, content)

    for module in ("harness.writers.report_html", "harness.writers", "harness.write"):
        monkeypatch.setattr(f"{module}.write_atomic", try_to_enter)
    assert run(desk, tmp_path, "a")[0] == 0
    # Word that it was started, then its result.
    assert refused == ["failure.json", "junit.xml", "junit.xml", "report.html", "run.json"]


def test_an_output_that_cannot_be_written_leaves_an_error_everywhere(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReportHtml, "write", refuse)
    code, said = run(desk, tmp_path, "a")
    assert code == 2
    assert verdict(tmp_path) == ("error", 2)
    assert "May ship" not in said
    assert "report_html: the disk is full" in said
    assert not (tmp_path / "a" / "report.html").exists()
    assert "every output is written" in (tmp_path / "a" / "junit.xml").read_text()
    monkeypatch.undo()
    assert run(desk, tmp_path, "a")[0] == 0
    assert verdict(tmp_path) == ("pass", 0)


def test_tables_that_cannot_be_read_any_more_make_the_run_an_error(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object) -> None:
        raise TableError("journal.jsonl: Input/output error")

    monkeypatch.setattr("harness.write.StoreReader", damaged)
    code, said = run(desk, tmp_path, "a")
    assert code == 2
    assert verdict(tmp_path) == ("error", 2)
    assert "May ship" not in said
    assert "not every output shows all of its tables: journal.jsonl: Input/output error" in said


@pytest.mark.parametrize("step", ["write_run", "read_run", "read_back"])
def test_a_run_file_that_cannot_be_written_or_read_back_leaves_no_result(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(harness.running.publishing, step, refuse)
    code, said = run(desk, tmp_path, "a")
    assert code == 2
    check_no_result(tmp_path / "a", "the disk is full")
    assert "May ship" not in said
    assert "the disk is full" in said


@pytest.mark.parametrize("step", ["write_outputs", "write_run"])
def test_a_process_killed_between_the_outputs_leaves_no_run_file(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    assert run(desk, tmp_path, "a")[0] == 0
    monkeypatch.setattr(harness.running.publishing, step, die)
    with pytest.raises(KilledError):
        run(desk, tmp_path, "a")
    assert not (tmp_path / "a" / "run.json").exists()


def misspell(text: str) -> str:
    return text.replace("suites:", "suits:")


def point_nowhere(text: str) -> str:
    return text.replace("./gate.yaml", "./nowhere.yaml")


@pytest.mark.parametrize("change", [misspell, point_nowhere])
def test_a_mistake_in_a_file_leaves_no_earlier_result_of_its_variants(
    desk: Path, tmp_path: Path, change: Callable[[str], str]
) -> None:
    assert run(desk, tmp_path, "a", "b")[0] == 0
    broken = desk / "broken.yaml"
    broken.write_text(change(VARIANT.format(name="a")))
    kept = results(tmp_path, "b")
    with pytest.raises(PlanError):
        run(desk, tmp_path, "broken")
    assert results(tmp_path, "b") == kept
    check_no_result(tmp_path / "a", "broken.yaml")
    assert run(desk, tmp_path, "a")[0] == 0
    with pytest.raises(PlanError):
        run(desk, tmp_path, "b", "broken")
    for name in ("a", "b"):
        check_no_result(tmp_path / name, "broken.yaml")


def test_a_mistake_in_a_file_deletes_nothing_while_another_process_holds_the_folder(desk: Path, tmp_path: Path) -> None:
    assert run(desk, tmp_path, "a")[0] == 0
    (desk / "broken.yaml").write_text(misspell(VARIANT.format(name="a")))
    before, lock = results(tmp_path), hold(tmp_path / "a", MARKER)
    with pytest.raises(PlanError):
        run(desk, tmp_path, "broken")
    os.close(lock)
    assert results(tmp_path) == before


def test_a_run_folder_that_is_a_link_or_somebody_elses_is_left_alone(desk: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "report.html").write_text("mine")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a").symlink_to(elsewhere)
    with pytest.raises(WriteError, match="linked/a: found a link"):
        run(desk, tmp_path / "linked", "a")
    elsewhere.rename(tmp_path / "a")
    with pytest.raises(WriteError, match=r"a: found 'report\.html' and nothing written by this program"):
        run(desk, tmp_path, "a")
    assert [(path.name, path.read_text()) for path in (tmp_path / "a").iterdir()] == [("report.html", "mine")]
