"""A backend in a package of its own, installed like any other: the one that its guide shows."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from contextlib import suppress
from inspect import signature
from pathlib import Path

import pytest
import torch

from harness import plugins
from harness.testing.model_cases import ModelCases

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / ".github" / "guides" / "backend.md"
MODULE = "stochastic_rounding.py"


def shown() -> dict[str, str]:
    """The files of the package by path: every block of the guide that opens with one."""
    return dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", GUIDE.read_text(), re.DOTALL))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder ``package`` with what the guide shows, and ``site`` with what pip installed of it."""
    folder = tmp_path_factory.mktemp("outside")
    for path, text in shown().items():
        file = folder / "package" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    pip = [sys.executable, "-m", "pip", "install", *offline, "--target", str(folder / "site"), str(folder / "package")]
    subprocess.run(pip, check=True, cwd=folder)
    (folder / "package" / MODULE).unlink()  # What runs is what was installed.
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder / "site"), str(ROOT)))}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder / "package", env=environment, capture_output=True, text=True, check=False)


def test_the_guide_shows_a_package() -> None:
    assert shown().keys() == {"pyproject.toml", MODULE, "tests/test_stochastic_rounding.py"}
    assert shown()[MODULE].count("\n") < 60


def test_it_is_listed_among_the_others(installed: Path) -> None:
    listed = python(installed, "harness", "list")
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"^stochastic_rounding +Rounds every weight up or down by chance", listed.stdout, re.MULTILINE)


def test_what_it_does_keeps_the_contract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / MODULE).write_text(shown()[MODULE])
    monkeypatch.syspath_prepend(tmp_path)
    found, load = importlib.import_module("stochastic_rounding").StochasticRounding, plugins.load
    monkeypatch.setattr(plugins, "load", lambda base, name: found if name == found.kind else load(base, name))

    class Cases(ModelCases):
        backend = found.kind
        ladder = ({"bits": 8}, {"bits": 4}, {"bits": 2})

    cases = {name: case for name, case in vars(ModelCases).items() if name.startswith("test")}
    plain = [name for name, case in cases.items() if len(signature(case).parameters) == 1]
    assert len(plain) >= 12
    for name in plain:
        with suppress(pytest.skip.Exception):
            getattr(Cases(), name)()


@pytest.mark.slow
def test_its_own_tests_run_the_kit(installed: Path) -> None:
    tested = python(installed, "pytest", "-q", "-rs", "-p", "no:cacheprovider")
    assert tested.returncode == 0, tested.stdout
    counts = re.search(r"(\d+) passed, (\d+) skipped", tested.stdout)
    assert counts, tested.stdout
    assert int(counts[1]) >= 25, tested.stdout


@pytest.mark.slow
def test_the_kit_finds_a_mistake_in_it(installed: Path) -> None:
    file = installed / "site" / MODULE
    good = file.read_text()
    file.write_text(good.replace(", generator=chance", ""))
    try:
        tested = python(installed, "pytest", "-q", "-p", "no:cacheprovider")
    finally:
        file.write_text(good)
    failed = set(re.findall(r"^FAILED .*::(\w+)", tested.stdout, re.MULTILINE))
    assert failed == {"test_the_same_settings_give_the_same_bytes", "test_nothing_global_changes"}, tested.stdout
