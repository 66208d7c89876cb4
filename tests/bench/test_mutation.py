"""Mutants of what decides: the list of equivalent ones is no older than the code, and a mutant is what is tested."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bench.mutants import TARGETS, draw, run_tests
from tests.bench.mutation import list_mutants, read_equivalents

ROOT = Path(__file__).parents[2]
TEXT = """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    LEVEL = 1

def decide(value: int | None, least: float = 0.5) -> bool | None:
    return value >= least and not value == 3
"""


def test_every_file_and_its_tests_are_there() -> None:
    for file, tests in TARGETS.items():
        assert (ROOT / "harness" / file).is_file(), file
        for test in tests.split():
            assert (ROOT / "tests" / test).is_file(), test


def test_every_equivalent_mutant_is_a_line_of_today_and_has_a_reason() -> None:
    for change, because in read_equivalents().items():
        assert change.file in TARGETS
        lines = [" ".join(line.split()) for line in (ROOT / "harness" / change.file).read_text("utf-8").splitlines()]
        assert change.line in lines, f"{change.file} has no line {change.line!r} any more: take it off the list"
        assert change.becomes != change.line
        assert len(because) > 20


def test_every_equivalent_mutant_is_still_made() -> None:
    pytest.importorskip("cosmic_ray", reason="needs the extra mutation")
    for file in {change.file for change in read_equivalents()}:
        wanted = {change for change in read_equivalents() if change.file == file}
        lines = {change.line for change in wanted}
        made = {mutant.change for mutant in list_mutants(ROOT / "harness", file) if mutant.line in lines}
        assert wanted <= made, f"no such mutant: {wanted - made}"


def test_what_decides_is_changed_and_what_does_not_run_is_not(tmp_path: Path) -> None:
    pytest.importorskip("cosmic_ray", reason="needs the extra mutation")
    (tmp_path / "x.py").write_text(TEXT)
    made = {mutant.change.becomes for mutant in list_mutants(tmp_path, "x.py")}
    line = "return value >= least and not value == 3"
    assert made == {
        "def decide(value: int | None, least: float = 1.5) -> bool | None:",
        "def decide(value: int | None, least: float = -0.5) -> bool | None:",
        line.replace(">=", ">"), line.replace(">=", "<"), line.replace("and", "or"), line.replace("not ", ""),
        line.replace("==", "!="), line.replace("3", "4"), line.replace("3", "2"),
    }  # fmt: skip


def test_the_sample_is_the_same_each_time_and_has_one_mutant_a_place(tmp_path: Path) -> None:
    pytest.importorskip("cosmic_ray", reason="needs the extra mutation")
    (tmp_path / "x.py").write_text(TEXT)
    mutants = list_mutants(tmp_path, "x.py")
    drawn = draw(mutants, 4, seed=1)
    assert len(drawn) == 4
    assert drawn == draw(list(reversed(mutants)), 4, seed=1)[::-1]
    assert drawn != draw(mutants, 4, seed=2)
    places = [(mutant.number, mutant.column) for mutant in draw(mutants, 99, seed=1)]
    assert len(places) == len(set(places)) == 6
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.py").write_text("# A line more.\n" + TEXT)
    moved = draw(list_mutants(tmp_path / "more", "x.py"), 4, seed=1)
    assert [mutant.operator for mutant in moved] == [mutant.operator for mutant in drawn]
    assert draw(mutants, 0, seed=1) == mutants


@pytest.mark.slow
def test_a_fault_is_noticed_and_the_file_stays_as_it_is() -> None:
    """In a process of its own: the children are forks, which must not have imported the module."""
    code = (
        "from tests.bench.mutants import ROOT, load_libraries, run_tests\n"
        "load_libraries()\n"
        "file = 'statistics/multiplicity.py'\n"
        "text = (ROOT / 'harness' / file).read_text()\n"
        "assert text.count('half <= 0') == 1\n"
        "print([run_tests(file, each, 300).code for each in (text, text.replace('half <= 0', 'half < 0'))])\n"
        "assert (ROOT / 'harness' / file).read_text() == text\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[0, 1]", done.stderr[-2000:]


def test_what_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second is not enough for any file of tests."""
    monkeypatch.setattr("tests.bench.mutants._test_and_exit", lambda *_: time.sleep(60))
    outcome = run_tests("statistics/multiplicity.py", "", limit=0.5)
    assert outcome.code == -1
    assert 0.5 <= outcome.seconds < 30
