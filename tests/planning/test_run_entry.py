"""The entry ``run``: strict, needs Ray, and no part of what is recorded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from harness.errors import PlanError
from harness.plan import make_plan, resolve_plan
from harness.records import RunSpec

VARIANT = """\
name: v
reference: {model: pocket}
variant: {compress: [{backend: round_to_nearest, bits: 4}]}
suites: [smoke]
gates: [smoke]
"""


def write(folder: Path, run: str = "") -> Path:
    path = folder / "v.yaml"
    path.write_text(VARIANT + run)
    return path


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, True)


def pretend(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str, *more: Any) -> Any:
        return (found("json") if installed else None) if name == "ray" else found(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


@pytest.mark.usefixtures("with_ray")
def test_the_entry_reaches_the_plan_and_not_run_json(tmp_path: Path) -> None:
    made = make_plan(write(tmp_path, "run: {ray: auto, workers: 3, gpus_per_worker: 0.5}\n"))
    assert made.run == RunSpec(ray="auto", workers=3, gpus_per_worker=0.5)
    assert made.run.cpus_per_worker == 1
    plain = make_plan(write(tmp_path))
    assert plain.run is None
    assert resolve_plan(made) == resolve_plan(plain)


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize(
    ("entry", "fragment"),
    [
        ("{ray: auto, worker: 3}", "v.yaml:6: run.worker: found the unknown key 'worker', expected one of ray"),
        ("{ray: auto, workers: 0}", "v.yaml:6: run.workers: found 0 (a number), expected a number greater than 0"),
        (
            "{ray: auto, gpus_per_worker: -1}",
            "run.gpus_per_worker: found -1 (a number), expected a number of at least 0.0",
        ),
        ("{ray: auto, wait: soon}", "run.wait: found 'soon' (text), expected a number"),
        ("{workers: 3}", "run.ray: found nothing"),
        ("ray", "run: found 'ray' (text), expected a mapping with ray, workers"),
    ],
)
def test_mistakes_are_named_with_line_and_key(tmp_path: Path, entry: str, fragment: str) -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(write(tmp_path, f"run: {entry}\n"))
    assert fragment in str(caught.value)


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize(
    ("device", "entry", "fragment"),
    [
        ("cuda", "{ray: auto}", "run: found no GPUs for workers of models on cuda, expected gpus_per_worker"),
        ("cuda:1", "{ray: auto, gpus_per_worker: 1}", "reference.device: found cuda:1 with run, expected cuda"),
    ],
)
def test_models_on_gpus_need_workers_with_gpus(tmp_path: Path, device: str, entry: str, fragment: str) -> None:
    path = write(tmp_path, f"run: {entry}\n")
    path.write_text(path.read_text().replace("{model: pocket}", f"{{model: pocket, device: '{device}'}}"))
    with pytest.raises(PlanError) as caught:
        make_plan(path)
    assert fragment in str(caught.value)


def test_without_ray_the_plan_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, False)
    with pytest.raises(PlanError, match=r'v.yaml:6: run: .*pip install "lm-shipcheck\[ray\]"'):
        make_plan(write(tmp_path, "run: {ray: auto}\n"))
    assert make_plan(write(tmp_path)).run is None
