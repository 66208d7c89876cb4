"""The page about several runs: written from folders, harmless names, and never in the place of another file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.errors import HarnessError, WriteError
from harness.overview.page import is_overview, render, write_overview
from harness.overview.variants import Variant
from harness.records import Failure, Run
from harness.write import write_failure, write_run
from tests.overview.conftest import MakeRun

HOSTILE = '<script>alert(1)</script><img src=x onerror="a">\u202eevil'


def folders_of(runs: Sequence[Run], place: Path) -> list[Path]:
    folders = []
    for index, run in enumerate(runs):
        folder = place / f"{index}"
        folder.mkdir(parents=True)
        write_run(run, folder)
        folders.append(folder)
    return folders


def test_the_page_names_the_variant_to_take_and_why_others_are_not(alike: MakeRun, tmp_path: Path) -> None:
    runs = [alike("small", "fail", 1e6, 0.5), alike("good", "pass", 2e6, 0.02), alike("large", "pass", 4e6, 0.03)]
    page = write_overview(folders_of(runs, tmp_path), tmp_path / "overview.html").read_text()
    assert "Take good" in page
    (whole,) = (m.reference for m in runs[1].measurements if m.name == "memory.weight_bytes")
    assert whole is not None
    share = 2e6 / whole
    assert f"{share * 100:.1f} % of the reference" in page.replace("\u202f", " ")
    assert 'large <span class="faint">by good</span>' in page


def test_a_report_is_linked_only_where_it_was_written(alike: MakeRun, tmp_path: Path) -> None:
    folders = folders_of([alike("one"), alike("two")], tmp_path / "runs")
    (folders[0] / "report.html").write_text("")
    page = write_overview(folders, tmp_path / "overview.html").read_text()
    assert '<a href="runs/0/report.html">one</a>' in page
    assert "runs/1" not in page


def test_a_variant_that_could_not_be_run_is_on_the_page(alike: MakeRun, tmp_path: Path) -> None:
    folders = folders_of([alike("one"), alike("two")], tmp_path)
    (tmp_path / "lost").mkdir()
    write_failure(Failure(name="lost", failure="resources", message="out of memory"), tmp_path / "lost")
    page = write_overview([*folders, tmp_path / "lost"], tmp_path / "overview.html").read_text()
    assert "<strong>lost</strong>" in page
    assert "out of memory" in page


def test_another_file_is_not_replaced(alike: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "overview.html").write_text("mine")
    with pytest.raises(WriteError, match="a file that is no overview"):
        write_overview(folders_of([alike("one"), alike("two")], tmp_path), tmp_path / "overview.html")
    assert (tmp_path / "overview.html").read_text() == "mine"
    assert not is_overview(tmp_path / "overview.html")
    assert not is_overview(tmp_path / "no such file")


def test_a_folder_without_a_run_is_an_error_that_names_it(alike: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="empty"):
        write_overview([*folders_of([alike("one")], tmp_path), tmp_path / "empty"], tmp_path / "overview.html")


def test_names_stay_text(alike: MakeRun) -> None:
    runs = [alike(HOSTILE), alike("b", asked=alike("b").asked | {"choice": {HOSTILE: HOSTILE}}), alike(HOSTILE, "fail")]
    page = render([Variant(run, Path("x")) for run in runs], [Failure(name=HOSTILE, failure="usage", message=HOSTILE)])
    assert page.count("<script") == 1
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "\u202e" not in page


def test_the_same_runs_give_the_same_page(alike: MakeRun) -> None:
    runs = [Variant(alike(name, "pass", size, kl), Path("x")) for name, size, kl in (("a", 1e6, 0.1), ("b", 2e6, 0.2))]
    assert render(runs) == render(runs)


def test_runs_of_one_name_are_a_course_of_time_and_only_the_newest_is_a_choice(alike: MakeRun) -> None:
    old = alike("a")
    new = alike("a", "fail", clock=old.clock.model_copy(update={"started": "2026-11-23T08:00:00+00:00"}))
    page = render([Variant(new, Path("new")), Variant(old, Path("old"))])
    assert "a over time" in page
    assert "may ship → must not ship" in page
    assert page.index("2026-11-22T08") < page.index("2026-11-23T08")
    assert "No variant passes" in page


def test_thirty_variants_fit_on_one_page(alike: MakeRun) -> None:
    runs = [
        Variant(alike(f"v{i}", ("pass", "fail", "inconclusive")[i % 3], 1e6 + i * 1e5, 0.5 / (i + 1)), Path("x"))
        for i in range(30)
    ]
    page = render(runs)
    assert page.count('<th scope="row"><a') + page.count('<th scope="row">v') == 30
    assert len(page) < 200_000
