"""metrics.json, measurements.csv and measurements.parquet hold the numbers of run.json, every bit of them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.records import Measurement
from harness.report.numbers import COLUMNS, list_rows
from harness.writers.measurements_csv import MeasurementsCsv
from harness.writers.measurements_parquet import MeasurementsParquet
from harness.writers.metrics_json import MetricsJson
from tests.helpers.made_run import Made


def test_metrics_are_flat_and_exact(made: dict[str, Made], tmp_path: Path) -> None:
    run = made["fail"].run
    flat = json.loads(MetricsJson().write(run, made["fail"].tables, tmp_path).read_bytes())
    assert all(type(value) in {int, float} for value in flat.values())
    ratio = next(m for m in run.measurements if m.name == "perplexity.ratio")
    for side in ("change", "low", "high"):
        assert flat[f"perplexity.ratio.{side}"] == getattr(ratio, side)
    assert flat["exit_code"] == 1
    blocking = [each.status for each in run.verdicts if each.level == "block"]
    assert {name: flat[f"rules.{name}"] for name in ("pass", "fail")} == {
        n: blocking.count(n) for n in ("pass", "fail")
    }


def test_what_is_not_finite_is_left_out_of_metrics(made: dict[str, Made], tmp_path: Path) -> None:
    lost = Measurement(
        name="lost", unit="", better="lower", basis="sampled", n=1, clusters=1, method="", non_finite="variant"
    )
    run = made["fail"].run.model_copy(update={"measurements": (lost,)})
    flat = json.loads(MetricsJson().write(run, made["fail"].tables, tmp_path).read_bytes())
    assert not [key for key in flat if key.startswith("lost")]
    (row,) = list_rows(run)
    assert (row["non_finite"], row["change"]) == ("variant", None)


def test_the_table_has_every_measurement_in_full_precision(made: dict[str, Made], tmp_path: Path) -> None:
    run = made["fail"].run
    path = MeasurementsCsv().write(run, made["fail"].tables, tmp_path)
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(run.measurements)
    for row, m in zip(rows, run.measurements, strict=True):
        assert (row["metric"], row["n"]) == (m.name, str(m.n))
        assert row["change"] == ("" if m.change is None else repr(m.change))


def test_parquet_holds_the_same_rows_with_types(made: dict[str, Made], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run = made["fail"].run
    table = parquet.read_table(MeasurementsParquet().write(run, made["fail"].tables, tmp_path))
    assert table.column_names == list(COLUMNS)
    assert table.to_pylist() == list_rows(run)


def test_dvc_shows_what_changed_between_two_commits(made: dict[str, Made], tmp_path: Path) -> None:
    dvc, git = shutil.which("dvc"), shutil.which("git")
    if not dvc or not git:
        pytest.skip("needs dvc (pip install dvc) and git")
    before = made["fail"].run
    ratio = next(m for m in before.measurements if m.name == "perplexity.ratio")
    changed = ratio.model_copy(update={"change": 1.5})
    after = before.model_copy(update={"measurements": tuple(changed if m is ratio else m for m in before.measurements)})
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "GIT_CONFIG_GLOBAL": os.devnull, "HOME": str(tmp_path)}

    def call(*command: str) -> str:
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout  # fmt: skip

    call(git, "init", "--quiet")
    call(dvc, "init", "--quiet")
    MetricsJson().write(before, made["fail"].tables, tmp_path)
    call(git, "add", ".")
    call(git, "-c", "user.name=n", "-c", "user.email=e@e.invalid", "commit", "--quiet", "-m", "before")
    MetricsJson().write(after, made["fail"].tables, tmp_path)
    found = json.loads(call(dvc, "metrics", "diff", "--json", "--targets", "metrics.json"))
    (metrics,) = found.values()
    assert metrics == {"perplexity.ratio.change": {"old": ratio.change, "new": 1.5, "diff": 1.5 - (ratio.change or 0)}}
