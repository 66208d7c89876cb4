"""The pytest plugin, in processes of their own: what is collected, what fails, and what it costs where it is unused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "harness.pytest_plugin"
SUITE = "documents: {data: pocket-heldout, max: 24, context: 64}\nmeasures: [memory, logits]\n"
GATE = """\
rules:
  - {rule: at_most, metric: memory.bits_per_weight, limit: 32.0, why: any number of bits}
  - {rule: at_most, metric: memory.bits_per_weight, limit: 2.0, why: the device is small}
  - {rule: at_most, metric: memory.bits_per_weight, limit: 1.0, level: warn, why: a wish}
"""
VARIANT = """\
name: small
reference: {model: pocket}
variant: {compress: [{backend: round_to_nearest, bits: 8, granularity: channel}]}
suites: [./suite.yaml]
gates: [./gate.yaml]
"""


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Pytest in ``folder`` with the plugin, as its entry point would load it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_TESTRUNUID", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    # Where the harness is installed, its entry point loads the plugin, which pytest refuses to load twice.
    installed = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
    command = [sys.executable, "-m", "pytest", *([] if installed else ["-p", PLUGIN]), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a variant that breaks one rule, and tests of its own."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pytest.ini").write_text("[pytest]\n")
    for name, text in (("suite.yaml", SUITE), ("gate.yaml", GATE), ("small.variant.yaml", VARIANT)):
        (folder / "variants").mkdir(exist_ok=True)
        (folder / "variants" / name).write_text(text)
    (folder / "test_own.py").write_text(
        "def test_it_gets_smaller(check):\n"
        "    run = check('variants/small.variant.yaml')\n"
        "    assert run.verdict == 'fail'\n"
        "    assert check('variants/small.variant.yaml') == run\n"
    )
    return folder


def test_a_test_a_rule_with_a_readable_failure_and_junit(project: Path) -> None:
    done = start(project, "variants", "-rs", "--junitxml=j.xml")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 2 passed, 1 skipped" in done.stdout
    for line in (
        "small: at_most memory.bits_per_weight",
        "expected: at most 2",
        "limit because: the device is small",
        "rule: variants/gate.yaml:3",
        "report: runs/small/report.html",
        "what to do: ",
    ):
        assert line in done.stdout, done.stdout
    assert "Traceback" not in done.stdout
    cases = list(ElementTree.parse(project / "j.xml").iter("testcase"))  # noqa: S314 - written a moment ago
    assert [case.get("name") for case in cases] == [
        "gate/at_most memory.bits_per_weight", "gate/at_most memory.bits_per_weight (2)",
        "gate/at_most memory.bits_per_weight (3)", "run",
    ]  # fmt: skip
    assert [[child.tag for child in case if child.tag != "properties"] for case in cases] == [
        [], ["failure"], ["skipped"], [],
    ]  # fmt: skip


def test_k_selects_and_the_fixture_gives_the_run(project: Path) -> None:
    done = start(project, "-k", "run or smaller")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 3 deselected" in done.stdout


def test_lf_repeats_the_rule_that_failed(project: Path) -> None:
    start(project, "variants", "-o", "cache_dir=cache")
    done = start(project, "variants", "--lf", "-o", "cache_dir=cache")
    assert "1 failed" in done.stdout, done.stdout
    assert "passed" not in done.stdout


def test_workers_share_one_check(project: Path) -> None:
    pytest.importorskip("xdist")
    done = start(project, "variants", "-n", "2")
    assert "1 failed, 2 passed, 1 skipped" in done.stdout, done.stdout + done.stderr


def test_last_failed_runs_the_rule_that_failed_again(project: Path) -> None:
    start(project, "variants")
    done = start(project, "variants", "--lf")
    assert " 1 failed in" in done.stdout, done.stdout
    assert "FAILED variants/small.variant.yaml::gate/at_most memory.bits_per_weight (2)" in done.stdout


def test_mistakes_of_a_file_are_errors_of_collection(tmp_path: Path) -> None:
    (tmp_path / "bad.variant.yaml").write_text(VARIANT.replace("compress", "compres"))
    done = start(tmp_path)
    assert done.returncode == 2
    assert "bad.variant.yaml:3: variant" in done.stdout
    assert "did you mean compress?" in done.stdout
    assert "1 error" in done.stdout


def test_a_run_that_could_not_be_made_is_an_error_and_inconclusive_a_failure(tmp_path: Path, project: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.replace("memory, logits", "perplexity"))
    rule = "rule: not_worse, metric: perplexity.ratio, margin: 0.5, min_documents: 50, why: few decide nothing"
    (tmp_path / "gate.yaml").write_text(f"rules: [{{{rule}}}]\n")
    (tmp_path / "one.variant.yaml").write_text(VARIANT)
    (tmp_path / "model").mkdir()
    (tmp_path / "broken.variant.yaml").write_text(
        VARIANT.replace("name: small", "name: broken").replace("model: pocket", "model: ./model")
    )
    done = start(tmp_path, "-rA")
    assert "PASSED broken" not in done.stdout
    assert done.stdout.count("ERROR broken.variant.yaml::") == 2, done.stdout
    assert "harness check broken.variant.yaml ended with exit code 2" in done.stdout
    run = json.loads((tmp_path / "runs" / "small" / "run.json").read_text())
    assert run["verdict"] == "inconclusive"
    assert "FAILED one.variant.yaml::gate/not_worse perplexity.ratio" in done.stdout
    assert done.returncode == 1


def test_unused_it_loads_nothing() -> None:
    code = (
        "import sys, pytest\nbefore = set(sys.modules)\nimport harness.pytest_plugin\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.stdout.strip() == "['harness', 'harness.pytest_plugin']"


def test_collecting_loads_no_model_library(project: Path) -> None:
    (project / "conftest.py").write_text(
        "import sys\ndef pytest_sessionfinish():\n    assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    try:
        done = start(project, "variants", "--collect-only", "-q")
    finally:
        (project / "conftest.py").unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "variants/small.variant.yaml::run" in done.stdout


def test_a_matrix_is_tests_of_each_of_its_variants(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.replace("memory, logits", "memory"))
    (tmp_path / "gate.yaml").write_text(GATE)
    text = VARIANT.replace("bits: 8", "bits: $bits").replace("name: small\n", "name: small\nmatrix: {bits: [4, 8]}\n")
    (tmp_path / "two.variant.yaml").write_text(text)
    done = start(tmp_path, "-rA")
    assert "2 failed, 4 passed, 2 skipped" in done.stdout, done.stdout
    assert "PASSED two.variant.yaml::small-bits8/run" in done.stdout


def test_a_variant_that_was_not_selected_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.replace("memory, logits", "memory"))
    (tmp_path / "gate.yaml").write_text(GATE.replace("limit: 2.0", "limit: 8.0"))
    text = VARIANT.replace("bits: 8", "bits: $bits").replace("name: small\n", "name: small\nmatrix: {bits: [4, 8]}\n")
    (tmp_path / "two.variant.yaml").write_text(text + "select: smallest_passing\n")
    done = start(tmp_path, "-rs")
    assert done.returncode == 0, done.stdout
    assert "variant not selected, fail" in done.stdout
