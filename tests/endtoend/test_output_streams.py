"""Closed, full and ASCII-only output: the exit code is that of the run, and nothing ends in a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.write import write_run
from tests.helpers.made_run import make_run
from tests.helpers.tiny_models import save, tiny_llama

GATE = "rules: [{{rule: at_most, metric: {metric}, limit: {limit}, why: größe ✓}}]\n"
VARIANT = """\
name: v
reference: {model: ./größe}
variant: {compress: [{backend: round_to_nearest, bits: 8}]}
suites: [./suite.yaml]
gates: [./pass.yaml]
outputs: [junit, report_html]
"""
REDIRECTIONS = [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    save(tiny_llama(), folder / "größe")
    (folder / "v.yaml").write_text(VARIANT)
    (folder / "suite.yaml").write_text("measures: [memory]\n")
    (folder / "pass.yaml").write_text(GATE.format(metric="memory.bits_per_weight", limit=99))
    (folder / "loose.yaml").write_text(GATE.format(metric="divergence.kl_mean", limit=1000))
    (folder / "strict.yaml").write_text(GATE.format(metric="divergence.kl_mean", limit=1e-9))
    (folder / "folder-above-its-root").write_text("a file")
    write_run(make_run("pass", documents=200).run, folder / "made")
    return folder


def shell(desk: Path, arguments: str, **environment: str) -> tuple[int, str]:
    command = f"{sys.executable} -m harness {arguments}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=desk, env=os.environ | environment, capture_output=True, check=False, timeout=300
    )
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@pytest.mark.parametrize("where", REDIRECTIONS)
def test_the_exit_code_of_a_verdict_does_not_depend_on_the_streams(desk: Path, where: str) -> None:
    for gate, expected in (("loose", 0), ("strict", 1), ("nowhere", 2)):
        code, said = shell(desk, f"judge made --gate ./{gate}.yaml {where}")
        assert code == expected, said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("list --terms >/dev/full", 2),
        ("list --terms >&-", 0),
        ("list --terms 2>/dev/full", 0),
        ("check nowhere.yaml >&- 2>&-", 2),
        ("chek >&- 2>&-", 2),
        ("report made --as junit >/dev/full", 0),
    ],
)
def test_what_only_prints_is_an_error_where_nothing_can_be_printed(desk: Path, arguments: str, expected: int) -> None:
    code, said = shell(desk, arguments)
    assert code == expected, said
    assert "Traceback" not in said
    assert (">/dev/full" in arguments and "2>" not in arguments) == ("No space left on device" in said)


@pytest.mark.parametrize("where", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_check_without_streams_passes_and_leaves_sound_files(desk: Path, tmp_path: Path, where: str) -> None:
    code, said = shell(desk, f"check v.yaml --out {tmp_path} {where}")
    assert code == 0, said
    assert json.loads((tmp_path / "v" / "run.json").read_text("utf-8"))["exit_code"] == 0
    assert "Must not ship" not in (tmp_path / "v" / "report.html").read_text("utf-8")
    assert not any("note " in path.read_text("utf-8", "replace") for path in (tmp_path / "v").glob(".lm-shipcheck"))


@pytest.mark.parametrize("encoding", ["", "ascii"])
def test_a_check_under_an_ascii_locale_gives_the_same_files(desk: Path, tmp_path: Path, encoding: str) -> None:
    code, said = shell(desk, f"check v.yaml --out {tmp_path}", LC_ALL="C", PYTHONIOENCODING=encoding)
    assert code == 0, said
    run = json.loads((tmp_path / "v" / "run.json").read_text("utf-8"))
    assert run["verdicts"][0]["why"] == "größe ✓"
    assert "größe" in (tmp_path / "v" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("out", "wanted"),
    [
        ("folder-above-its-root", "folder-above-its-root is a file, expected a folder"),
        ("/proc/1/nowhere", "/proc/1/nowhere/v: could not be opened for writing"),
        ("x" * 300, "File name too long"),
        ("/".join(["y" * 200] * 30), "File name too long"),
    ],
)
def test_a_place_that_cannot_hold_a_run_is_named_with_the_reason(desk: Path, out: str, wanted: str) -> None:
    code, said = shell(desk, f"check v.yaml --out {out}")
    assert code == 2
    assert wanted in said
    assert "defect" not in said
    for command in (f"plan v.yaml --out {out}", f"judge {out} --gate ./loose.yaml", f"report {out}"):
        code, said = shell(desk, command)
        assert "defect" not in said, said
