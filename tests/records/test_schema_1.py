"""A run.json of schema 1, as the release before wrote it: read, judged and drawn, and nothing it said is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.judge import rejudge
from harness.plan import load_gate
from harness.records import schema_1
from harness.write import read_run

ROOT = Path(__file__).parents[2]
OLD = Path(__file__).with_name("run_schema_1.json")
"""The run of the suite smoke on the embedded model, with two measurements of each name and four modules of a side."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the old run, without its tables."""
    shutil.copy(OLD, tmp_path / "run.json")
    return tmp_path


def harness(folder: Path, *arguments: str) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_number_and_word_of_the_old_file_is_kept(folder: Path) -> None:
    before, after = json.loads(OLD.read_text()), json.loads(read_run(folder).model_dump_json())
    for kind in ("measurements", "verdicts", "skipped"):
        for old, new in zip(before[kind], after[kind], strict=True):
            assert {name: new[name] for name in old} == old
    assert after["schema_version"] == 2


def test_what_the_method_said_of_counting_is_the_basis(folder: Path) -> None:
    found = {m.name: m for m in read_run(folder).measurements}
    assert found["memory.weight_bytes"].basis == "counted"
    assert {found[name].basis for name in ("perplexity.ratio", "logits.max_abs_diff", "layers.worst")} == {"sampled"}
    assert found["layers.sqnr_db"].infinite_neutral
    assert found["layers.sqnr_db"].effect is None
    assert not found["layers.relative_error"].infinite_neutral


SMOKE = """\
rules:
  - {rule: not_worse, metric: perplexity.ratio, margin: 0.05, why: w}
  - {rule: at_most, metric: divergence.kl_mean, limit: 0.2, why: w}
  - {rule: at_most, metric: logits.max_abs_diff, limit: 100.0, decide: point, why: w}
"""
"""The rules of the gate ``smoke`` when the old run was made; today's asks for metrics that it does not have."""


def test_the_old_run_is_judged_as_it_was(folder: Path) -> None:
    run = read_run(folder)
    (folder / "smoke.yaml").write_text(SMOKE)
    again = rejudge(run, [load_gate("./smoke.yaml", folder)])
    assert [(v.metric, v.status, v.margin) for v in again.verdicts] == [
        (v.metric, v.status, v.margin) for v in run.verdicts
    ]


STRICT = "rules:\n  - {rule: not_worse, metric: perplexity.ratio, margin: 1.0e-9, why: nothing may change}\n"
BYTES = "rules:\n  - {rule: at_most, metric: memory.weight_bytes, limit: 1.0e+9, why: it must fit}\n"
DECIBEL = "rules:\n  - {rule: not_worse, metric: layers.sqnr_db, margin: 3, why: w}\n"


@pytest.mark.parametrize(("gate", "code"), [("smoke", 2), (SMOKE, 0), (STRICT, 1), (BYTES, 0), (DECIBEL, 2)])
def test_judge_ends_with_the_code_of_its_verdict(folder: Path, gate: str, code: int) -> None:
    (folder / "gate.yaml").write_text(gate)
    name = "smoke" if gate == "smoke" else "./gate.yaml"
    assert harness(folder, "judge", str(folder), "--gate", name)[0] == code


def test_report_draws_it_with_the_titles_of_its_metrics(folder: Path) -> None:
    code, said = harness(folder, "report", str(folder))
    assert code == 0, said
    page = (folder / "report.html").read_text()
    assert "Perplexity ratio" in page
    assert "Same most likely token" in page


def test_a_metric_of_a_measure_that_is_gone_is_drawn_under_its_name(folder: Path) -> None:
    content: dict[str, Any] = json.loads(OLD.read_text())
    content["measurements"].append(content["measurements"][0] | {"name": "gone.mean_of_old"})
    content["verdicts"].append(content["verdicts"][0] | {"metric": "gone.mean_of_old"})
    (folder / "run.json").write_text(json.dumps(content))
    code, said = harness(folder, "report", str(folder))
    assert code == 0, said
    assert re.search(r">\s*gone\.mean_of_old\s*<", (folder / "report.html").read_text())


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("calibration_data", "calibration_data.*"),
        ("layer_error", "layers.*"),
        ("weight_error", "weights.*"),
        ("tasks.arc.*", "tasks.arc.*"),
        ("memory.peak_bytes", "memory.peak_bytes"),
    ],
)
def test_a_measure_that_was_skipped_whole_is_named_by_its_metrics(name: str, now: str) -> None:
    found = schema_1.upgrade({"skipped": [{"measure": name, "reason": "r"}], "measurements": []})
    assert found["skipped"] == [{"measure": now, "reason": "r"}]


def test_records_of_slices_are_read_too() -> None:
    part = {"measurements": [{"method": "exact count", "unit": "dB"}], "skipped": [{"measure": "layer_error"}]}
    (found,) = schema_1.upgrade({"slices": [part]})["slices"]
    assert found["measurements"][0]["basis"] == "counted"
    assert found["measurements"][0]["infinite_neutral"]
    assert found["skipped"][0]["measure"] == "layers.*"


def test_exact_match_with_an_interval_was_sampled() -> None:
    entry = {"method": "exact match, mean over items", "change": 0.0, "low": -0.01, "high": 0.01}
    (found,) = schema_1.upgrade({"measurements": [entry]})["measurements"]
    assert found["basis"] == "sampled"


def _without_list(content: dict[str, Any]) -> None:
    content["measurements"] = "many"


def _with_a_number(content: dict[str, Any]) -> None:
    content["slices"] = [7, {"skipped": 3}]


@pytest.mark.parametrize("damage", [_without_list, _with_a_number])
def test_a_damaged_old_file_is_refused_with_its_name(folder: Path, damage: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(OLD.read_text())
    damage(content)
    (folder / "run.json").write_text(json.dumps(content))
    code, said = harness(folder, "judge", str(folder), "--gate", "smoke")
    assert (code, "run.json" in said, "Traceback" in said) == (2, True, False)
