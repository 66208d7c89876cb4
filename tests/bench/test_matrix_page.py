"""The digest of the matrix: what it takes from the data, and that the page in the repository is made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.bench.matrix_cases import Case, steps
from tests.bench.matrix_page import Comparison, Matrix, Result, Row, comparisons, digest, read_data, results, write_data

GITHUB = Path(__file__).parents[2] / ".github"
OURS, THEIRS = Case("ours", "INT8", steps()), Case("lib", "INT8", steps(), "ours: INT8", "the library rounds up")
ROW = Row("k", real=3, kl=0.25, low=0.2, high=0.3, bits=8.0, stored=1500, tokens=[0.1, 0.3], documents=[0, 1])
PAIR = Comparison("pocket", "lib: INT8", "ours: INT8", "0.3", "0.2", "0.1", "0.05", "0.15", "differ", "rounds up")


def test_the_page_is_the_digest_of_the_data() -> None:
    assert digest(read_data(GITHUB / "data")) == (GITHUB / "MATRIX.md").read_text(encoding="utf-8")


def test_every_row_of_the_data_is_whole() -> None:
    every = read_data(GITHUB / "data").results
    cases = {(each.backend, each.method) for each in every}
    models = {each.model for each in every}
    assert len(every) == len(cases) * len(models)
    assert all(each.not_run or (float(each.kl) >= 0 and float(each.bits) > 0) for each in every)


def test_data_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = {"ours: INT8": ROW, "lib: INT8": Row("k", failed='no kernel, for "this"\nhere')}
    made = Matrix("2026-01-01", 3, {"torch": "2"}, ["gpt: no"], list(results("m", True, rows, [OURS, THEIRS])), [PAIR])
    write_data(made, tmp_path)
    assert read_data(tmp_path) == made


def test_a_row_says_where_it_runs_and_with_which_kernel() -> None:
    row = Result("pocket", "yes", "lib", "INT8", "3", "0", "no", "0.25", bits="8", megabytes="1", seconds="1")
    families = [replace(row, model=name, trained="no") for name in ("llama", "phi3")]
    failed = Result("gpt2", "no", "lib", "INT8", not_run="a Conv1D")
    untouched = replace(row, model="opt", trained="no", real="0")
    page = digest(Matrix("d", 1, {}, [], [row, *families, failed, untouched], []))
    assert "| lib | INT8 | real | 0.25000 | all but gpt2, opt |" in page


def test_pairs_agree_or_differ_by_the_interval_of_their_difference() -> None:
    rows = {"ours: INT8": replace(ROW, tokens=[0.1] * 8, documents=list(range(8)))}

    def result(tokens: list[float]) -> tuple[str, str]:
        (pair,) = comparisons("m", rows | {"lib: INT8": replace(rows["ours: INT8"], tokens=tokens)}, [OURS, THEIRS])
        return pair.result, pair.cause

    assert result([0.1] * 8) == ("same", "")
    assert result([0.2, 0.0] * 4) == ("agree", "")
    assert result([0.2, 0.3] * 4) == ("differ", "the library rounds up")


def test_a_difference_that_nothing_explains_stands_out() -> None:
    assert "| lib: INT8 | 0.30000 / 0.20000 | **not known** |" in digest(
        Matrix("d", 1, {}, [], [], [replace(PAIR, cause="")])
    )
