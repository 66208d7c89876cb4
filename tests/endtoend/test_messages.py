"""What a check says and writes: no home folder is in any file or line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import cli
from tests.helpers.tiny_models import save, tiny_llama

VARIANT = """\
name: v
reference: {{model: {home}/models/m}}
variant: {{compress: [{{backend: round_to_nearest, bits: {bits}}}]}}
suites: [{home}/suite.yaml]
gates: [{home}/gate.yaml]
outputs: [junit, report_html]
target: cuda-9.0
"""


def check(home: Path, bits: int, limit: float) -> int:
    save(tiny_llama(), home / "models" / "m")
    (home / "v.yaml").write_text(VARIANT.format(home=home, bits=bits))
    (home / "suite.yaml").write_text("measures: [memory]\n")
    why = f"as {home}/notes.txt says"
    rule = f"{{rule: at_most, metric: memory.bits_per_weight, limit: {limit}, why: {why}}}"
    (home / "gate.yaml").write_text(f"rules: [{rule}]\n")
    return cli._run(["check", str(home / "v.yaml"), "--out", str(home / "runs")])


@pytest.mark.parametrize(("limit", "code"), [(99, 0), (0.5, 1)])
def test_no_home_folder_is_in_any_file_of_a_run_or_on_the_terminal(
    limit: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "people" / "ann"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    assert check(home, 8, limit) == code
    monkeypatch.chdir(home / "runs")
    assert cli._run(["judge", str(home / "runs" / "v"), "--gate", str(home / "gate.yaml")]) == code
    assert cli._run(["report", str(home / "runs" / "v"), "--as", "junit"]) == 0
    assert cli._run(["init", str(home / "new.yaml")]) == 0
    assert cli._run(["plan", str(home / "v.yaml"), "--out", str(home / "runs")]) == 0
    assert cli._run(["lint", str(home / "gate.yaml"), "--run", str(home / "runs" / "v")]) in (0, 2)
    assert cli._run(["judge", str(home / "nowhere"), "--gate", str(home / "gate.yaml")]) == 2
    files = {path.name: path.read_text() for path in (home / "runs" / "v").glob("*.*")}
    assert {"run.json", "junit.xml", "report.html"} <= files.keys()
    said = "".join(capfd.readouterr())
    for name, text in (files | {"the terminal": said}).items():
        assert str(home) not in text, f"{name}: …{text[max(text.find(str(home)) - 80, 0) :][:200]}"
    assert json.loads(files["run.json"])["asked"]["reference"]["model"] == "~/models/m"
    assert "as ~/notes.txt says" in files["report.html"]
