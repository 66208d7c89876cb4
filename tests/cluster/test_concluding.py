"""Variants are concluded by workers, to the same record and report as by the head, which alone writes them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cluster.concluding import CONCLUDE, Concluded, Concluder
from harness.cluster.workers import Unit
from harness.concluding.conclusion import conclude
from harness.concluding.pair import Pair
from harness.errors import MeasureError
from harness.lockstep.stages import SUMS
from harness.system.masking import mask
from harness.tables.store import TABLES, StoreReader
from harness.write import write_again
from tests.helpers.cluster_checks import read_same
from tests.helpers.spread_checks import MATRIX, Spread, check_here

SHORT = """\
documents: {data: pocket-heldout, max: 6, context: 32, bos: auto}
measures: [divergence, perplexity, outliers]
"""
NAMES = ("v-bits3", "v-bits4", "v-bits8")


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Spread:
    monkeypatch.chdir(tmp_path)
    return Spread(monkeypatch)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return check_here(tmp_path_factory.mktemp("plain"), SHORT, 9.0, MATRIX)[1]


def list_concluded(spread: Spread) -> Counter[str]:
    return Counter(unit.variants[0] for _, unit in spread.workers[-1].computed if unit.kind == CONCLUDE)


def test_every_variant_is_concluded_once_by_some_worker_to_the_same_record_and_report(
    spread: Spread, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[bool] = []
    run = Concluder.run

    def look(concluder: Concluder, unit: Unit) -> Concluded:
        judged.extend(path.exists() for path in (tmp_path / "spread").glob("*/run.json"))
        return run(concluder, unit)

    monkeypatch.setattr(Concluder, "run", look)
    out = spread.check(tmp_path, SHORT, 9.0, matrix=MATRIX, seed=4)
    assert spread.code == 0
    assert list_concluded(spread) == dict.fromkeys(NAMES, 1)
    assert len({worker for worker, unit in spread.workers[0].computed if unit.kind == CONCLUDE}) == 2
    assert not judged, "a verdict stands only once all models were verified"
    for name in NAMES:
        assert read_same(out / name) == read_same(plain / name)
        assert StoreReader(out / name / TABLES).holds("s", SUMS)
        report = (out / name / "report.html").read_bytes()
        write_again(out / name, ["report_html"])
        assert (out / name / "report.html").read_bytes() == report


def test_a_variant_that_cannot_be_concluded_keeps_its_error_and_leaves_the_others_alone(
    spread: Spread, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(pair: Pair) -> None:
        if pair.observed.plan.name == "v-bits4":
            raise MeasureError("a divergence below zero")
        conclude(pair)

    monkeypatch.setattr("harness.cluster.concluding.conclude", fail)
    out = spread.check(tmp_path, SHORT, 9.0, matrix=MATRIX)
    assert spread.code == 2
    assert list_concluded(spread) == dict.fromkeys(NAMES, 1), "nobody else would come to another end"
    assert "a divergence below zero" in json.loads((out / "v-bits4" / "failure.json").read_text())["message"]
    assert not (out / "v-bits4" / "run.json").exists()
    assert read_same(out / "v-bits8") == read_same(plain / "v-bits8")


def test_where_workers_do_not_see_the_tables_the_head_concludes(
    spread: Spread, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = Concluder.run, []

    def elsewhere(concluder: Concluder, unit: Unit) -> Concluded:
        about: Any = unit.about
        if unit.variants[0] == "v-bits3":  # a folder of another machine
            about = replace(about, folder=tmp_path / "elsewhere")
        elif unit.variants[0] == "v-bits4":  # a copy that is behind
            about = replace(about, version="another")
        said.append(run(concluder, replace(unit, about=about)))
        return said[-1]

    monkeypatch.setattr(Concluder, "run", elsewhere)
    out = spread.check(tmp_path, SHORT, 9.0, matrix=MATRIX)
    assert sorted(each.judged is None for each in said) == [False, True, True]
    assert spread.code == 0
    for name in NAMES:
        assert read_same(out / name) == read_same(plain / name)
        assert (out / name / "report.html").is_file()


@pytest.mark.parametrize("when", [5, 6, 7])
def test_a_worker_that_dies_while_variants_are_concluded_changes_no_bit(
    spread: Spread, tmp_path: Path, plain: Path, when: int
) -> None:
    out = spread.check(tmp_path, SHORT, 9.0, matrix=MATRIX, deaths={"w1": when}, seed=3)
    assert spread.workers[0].lost == ["w1"]
    assert set(list_concluded(spread)) == set(NAMES)
    for name in NAMES:
        assert read_same(out / name) == read_same(plain / name)


def test_the_home_of_the_head_is_masked_whoever_the_worker_runs_as(
    spread: Spread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run = Concluder.run

    def as_another(concluder: Concluder, unit: Unit) -> Concluded:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", "/another")
            done = run(concluder, unit)
            assert mask("/another/x") == "~/x"
            return done

    monkeypatch.setattr(Concluder, "run", as_another)
    out = spread.check(tmp_path, SHORT, 9.0)
    assert spread.code == 0
    report = (out / "v" / "report.html").read_text()
    assert str(tmp_path) not in report
    assert "~/" in report
