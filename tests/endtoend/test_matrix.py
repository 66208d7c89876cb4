"""Many variants of one file: checked in one pass, each with its folder, one page about all, one exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SUITE = """description: a few documents
documents: {data: pocket-heldout, max: 24, context: 64}
measures: [divergence, memory]
"""
GATE = """description: most tokens must stay
rules:
  - {rule: at_most, metric: divergence.kl_mean, limit: 0.3, why: more is another model}
"""
FILE = """name: m
reference: {model: pocket}
matrix: {bits: [2, 8]}
variant: {compress: [{backend: round_to_nearest, bits: $bits, granularity: group, group_size: 128}]}
suites: [./suite.yaml]
gates: [./gate.yaml]
"""


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "harness", *arguments]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_matrix_is_checked_in_one_pass_and_one_page_names_the_variant_to_take(tmp_path: Path) -> None:
    for name, content in (("suite.yaml", SUITE), ("gate.yaml", GATE), ("m.yaml", FILE)):
        (tmp_path / name).write_text(content)

    code, output = run(tmp_path, "check", "m.yaml")
    assert code == 1, output
    assert output.count("reference pocket") == 1
    asked = json.loads((tmp_path / "runs/m-bits8/run.json").read_text())["asked"]
    assert asked["choice"] == {"bits": "8"}
    page = (tmp_path / "runs/overview.html").read_text()
    assert "Take m-bits8" in page
    assert 'href="m-bits2/report.html"' in page

    # What the page says of a variant that is checked again must not outlive the check, even one that breaks off.
    (tmp_path / "one.yaml").write_text(FILE.replace("matrix: {bits: [2, 8]}\n", "").replace("$bits", "8"))
    (tmp_path / "one.yaml").write_text((tmp_path / "one.yaml").read_text().replace("name: m", "name: m-bits8"))
    assert run(tmp_path, "check", "one.yaml")[0] == 0
    assert not (tmp_path / "runs/overview.html").exists()

    code, output = run(tmp_path, "report", "runs/m-bits2", "runs/m-bits8", "--out", "page.html")
    assert (code, output) == (0, "wrote page.html\n")
    assert "Take m-bits8" in (tmp_path / "page.html").read_text()

    (tmp_path / "m.yaml").write_text(FILE.replace("$bits", "$bit"))
    code, output = run(tmp_path, "check", "m.yaml")
    assert code == 2
    assert "m.yaml:4: variant.compress[0].bits: found '$bit', expected an axis of the matrix: bits" in output
