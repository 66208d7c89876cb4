"""The wheel holds all that the source tree holds: suites, gates, report templates, tasks and the embedded model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
GATE = "description: any\nrules:\n  - {rule: at_most, metric: divergence.kl_mean, limit: 1.0, why: any number}\n"
SUITE = "description: few\ndocuments: {data: pocket-heldout, max: 16, context: 128}\nmeasures: [divergence]\n"


@pytest.mark.slow
def test_an_installed_wheel_checks_the_embedded_model(tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert "harness/py.typed" in ZipFile(wheel).namelist()
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, cwd=tmp_path)

    def harness(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(site)}
        command = [sys.executable, "-m", "harness", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert "tokenizer mismatch" in harness("list", "--terms").stdout
    listed = harness("list")
    assert listed.returncode == 0, listed.stderr
    for name in ("smoke", "core", "standard", "ship", "strict", "cuda-9.0", "round_to_nearest"):
        assert name in listed.stdout
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "gate.yaml").write_text(GATE)
    assert harness("init", "v.yaml").returncode == 0
    text = (tmp_path / "v.yaml").read_text()
    text = text.replace("suites: [core]", "suites: [./suite.yaml]").replace("gates: [ship]", "gates: [./gate.yaml]")
    (tmp_path / "v.yaml").write_text(text)
    checked = harness("check", "v.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (report,) = (tmp_path / "runs").glob("*/report.html")
    assert "<html" in report.read_text()
