"""The whole flow on the embedded model, through the command line where exit codes and signals are at stake."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GATE = """\
description: small limits for tests
rules:
  - {rule: not_worse, metric: perplexity.ratio, margin: 0.02, why: a reader notices two percent}
  - {rule: at_least, metric: divergence.top1_agreement, limit: 0.8, why: most tokens must stay}
"""
SUITE = """\
description: a few documents
documents: {data: pocket-heldout, max: 24, context: 256}
measures: [logits, divergence, perplexity, calibration, layer_error, outliers, memory]
"""


def write_variant(folder: Path, name: str, compress: str, *, suite: str = SUITE, gate: str = GATE) -> Path:
    """A variant file of the embedded model with a suite and a gate beside it."""
    (folder / f"{name}-suite.yaml").write_text(suite)
    (folder / f"{name}-gate.yaml").write_text(gate)
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\n"
        "reference: {model: pocket}\n"
        f"variant:\n  compress: [{compress}]\n"
        f"suites: [./{name}-suite.yaml]\n"
        f"gates: [./{name}-gate.yaml]\n"
    )
    return path


def start(folder: Path, *arguments: str | Path, **popen: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **popen)


def run(folder: Path, *arguments: str | Path) -> tuple[int, str]:
    process = start(folder, *arguments)
    output, _ = process.communicate()
    return process.returncode, output


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "runs" / name / "run.json").read_text())
    return content


def without_clock(folder: Path, name: str) -> str:
    content = read(folder, name)
    content.pop("clock")
    return json.dumps(content, sort_keys=True)


INT8 = "{backend: round_to_nearest, bits: 8, granularity: channel}"
INT2 = "{backend: round_to_nearest, bits: 2, granularity: channel}"
ENDS_ITSELF = """\
import os
from harness import cli
from harness.tables.store import Store
write, written = Store._write, []
def write_nine(self, *table):
    written.append(write(self, *table))
    if len(written) == 9:
        os.kill(os.getpid(), {number})
    return written[-1]
Store._write = write_nine
cli.main()
"""


def test_a_good_variant_passes_and_leaves_a_report(tmp_path: Path) -> None:
    code, output = run(tmp_path, "check", write_variant(tmp_path, "int8", INT8))
    assert code == 0, output
    content = read(tmp_path, "int8")
    assert (content["verdict"], content["exit_code"]) == ("pass", 0)
    assert (tmp_path / "runs/int8/report.html").stat().st_size > 10_000
    assert "report.html" in output


def test_a_broken_variant_fails_and_judge_and_report_work_on_the_old_run(tmp_path: Path) -> None:
    code, output = run(tmp_path, "check", write_variant(tmp_path, "int2", INT2))
    assert code == 1, output
    content = read(tmp_path, "int2")
    failed = [verdict["metric"] for verdict in content["verdicts"] if verdict["status"] == "fail"]
    assert failed == ["perplexity.ratio", "divergence.top1_agreement"]

    (tmp_path / "loose.yaml").write_text(
        "description: anything goes\nrules:\n"
        "  - {rule: at_most, metric: divergence.kl_mean, limit: 1000.0, why: to see that gates are read anew}\n"
    )
    before = (tmp_path / "runs/int2/run.json").read_bytes()
    code, output = run(tmp_path, "judge", "runs/int2", "--gate", "./loose.yaml")
    assert code == 0, output
    assert (tmp_path / "runs/int2/run.json").read_bytes() == before
    assert run(tmp_path, "judge", "runs/int2", "--gate", "int2-gate.yaml")[0] == 1

    report = tmp_path / "runs/int2/report.html"
    first = report.read_bytes()
    assert "</code> fell from " in first.decode()
    assert "shown as ids" not in first.decode()
    report.unlink()
    assert run(tmp_path, "report", "runs/int2")[0] == 0
    assert report.read_bytes() == first


def test_a_rule_on_a_metric_that_does_not_exist_is_not_judged(tmp_path: Path) -> None:
    gate = GATE.replace("perplexity.ratio", "perplexity.ratoi")
    code, output = run(tmp_path, "check", write_variant(tmp_path, "typo", INT8, gate=gate))
    assert code == 2
    assert "typo-gate.yaml:3" in output
    assert "perplexity.ratio" in output
    assert not (tmp_path / "runs/typo/run.json").exists()


def test_a_rule_on_a_metric_that_was_skipped_is_an_error_with_the_reason(tmp_path: Path) -> None:
    gate = GATE + "  - {rule: at_most, metric: memory.peak_bytes, limit: 1.0e12, why: it must fit}\n"
    code, output = run(tmp_path, "check", write_variant(tmp_path, "skipped", INT8, gate=gate))
    assert code == 2, output
    errors = [verdict for verdict in read(tmp_path, "skipped")["verdicts"] if verdict["status"] == "error"]
    assert [verdict["metric"] for verdict in errors] == ["memory.peak_bytes"]
    assert "peak memory was not measured" in errors[0]["because"]


def test_every_mistake_of_a_file_is_reported_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "name: bad\n"
        "referense: {model: pocket}\n"
        "variant:\n"
        "  compress:\n"
        "    - {backend: round_to_neerest, bits: 4}\n"
        "    - {backend: round_to_nearest, bits: 99}\n"
        "suites: [cor]\n"
        "gates: []\n"
    )
    code, output = run(tmp_path, "check", "bad.yaml")
    assert code == 2
    for line, words in ((2, "reference"), (5, "round_to_nearest"), (6, "99"), (7, "core"), (8, "gates")):
        assert any(f"bad.yaml:{line}:" in text and words in text for text in output.splitlines()), output


def test_identity_changes_nothing_and_passes_and_two_runs_are_the_same_bytes(tmp_path: Path) -> None:
    path = write_variant(tmp_path, "same", "")
    assert run(tmp_path, "check", path)[0] == 0
    first = without_clock(tmp_path, "same")
    for measurement in json.loads(first)["measurements"]:
        if measurement["change"] is not None:
            assert measurement["change"] == measurement["neutral"], measurement["name"]
    assert any(note["topic"] == "same model" for note in json.loads(first)["notes"])
    code, _ = run(tmp_path, "check", path, "--out", "again")
    assert code == 0
    (tmp_path / "again").rename(tmp_path / "moved")
    second = json.loads((tmp_path / "moved/same/run.json").read_text())
    second.pop("clock")
    assert json.dumps(second, sort_keys=True) == first


def test_two_variants_share_a_reference_and_the_worst_exit_code_counts(tmp_path: Path) -> None:
    good, bad = write_variant(tmp_path, "good", INT8), write_variant(tmp_path, "bad", INT2)
    bad.write_text(bad.read_text().replace("bad-suite", "good-suite"))
    code, output = run(tmp_path, "check", good, bad)
    assert code == 1, output
    assert read(tmp_path, "good")["verdict"] == "pass"
    assert read(tmp_path, "bad")["verdict"] == "fail"
    alone = without_clock(tmp_path, "good")
    assert run(tmp_path, "check", good, "--out", "alone")[0] == 0
    (tmp_path / "runs").rename(tmp_path / "together")
    (tmp_path / "alone").rename(tmp_path / "runs")
    assert without_clock(tmp_path, "good") == alone


def test_a_variant_that_cannot_be_made_takes_nothing_from_the_others(tmp_path: Path) -> None:
    good = write_variant(tmp_path, "good", INT8)
    bad = write_variant(tmp_path, "bad", "{backend: round_to_nearest, bits: 8, skip: [no_such_module]}")
    bad.write_text(bad.read_text().replace("bad-suite", "good-suite"))
    code, output = run(tmp_path, "check", bad, good)
    assert code == 2
    assert "no_such_module" in output
    assert read(tmp_path, "good")["verdict"] == "pass"
    assert not (tmp_path / "runs/bad/run.json").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_ended_resumes_and_ends_with_the_same_bytes(tmp_path: Path, number: int) -> None:
    path = write_variant(tmp_path, "killed", INT8)
    assert run(tmp_path, "check", path)[0] == 0
    undisturbed = without_clock(tmp_path, "killed")
    (tmp_path / "runs").rename(tmp_path / "undisturbed")

    # The process signals itself: from outside, a fast machine could be done before the signal comes.
    command = [sys.executable, "-c", ENDS_ITSELF.format(number=int(number)), "check", str(path)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == (-number if number == signal.SIGKILL else 128 + number), ended.stdout + ended.stderr
    assert not (tmp_path / "runs/killed/run.json").exists()
    assert len(list((tmp_path / "runs/killed/tables").rglob("*.parquet"))) >= 8

    assert run(tmp_path, "check", path)[0] == 0
    assert without_clock(tmp_path, "killed") == undisturbed


def test_a_reader_that_goes_away_changes_no_exit_code(tmp_path: Path) -> None:
    process = start(tmp_path, "check", write_variant(tmp_path, "int2", INT2))
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 1
    assert read(tmp_path, "int2")["verdict"] == "fail"


def test_a_stale_verdict_does_not_survive_a_run_that_cannot_be_judged(tmp_path: Path) -> None:
    path = write_variant(tmp_path, "stale", INT8)
    assert run(tmp_path, "check", path)[0] == 0
    path.write_text(path.read_text().replace("bits: 8", "bits: 8, skip: [no_such_module]"))
    assert run(tmp_path, "check", path)[0] == 2
    assert not (tmp_path / "runs/stale/run.json").exists()
    assert not (tmp_path / "runs/stale/report.html").exists()


@pytest.mark.parametrize(("compress", "expected"), [(INT8, 2), (INT2, 1)])
def test_a_report_that_cannot_be_written_never_passes_and_never_hides_a_failure(
    tmp_path: Path, compress: str, expected: int
) -> None:
    path = write_variant(tmp_path, "unwritten", compress)
    code = (
        "import sys, harness.cli as cli\n"
        "from harness.plugins import load\n"
        "from harness.writers import Writer\n"
        "def broken(self, run, tables, folder): raise RuntimeError('template is broken')\n"
        "load(Writer, 'report_html').write = broken\n"
        f"sys.exit(cli._run(['check', {str(path)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stdout + done.stderr
    assert "template is broken" in done.stdout + done.stderr
    content = read(tmp_path, "unwritten")
    assert (content["verdict"], content["exit_code"]) == (("error", 2) if compress == INT8 else ("fail", 1))
    assert "May ship" not in done.stdout
