"""As many variants go through the reference together as memory holds; more passes give the same numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import harness.run
from harness.check import check
from harness.cli import _run
from harness.forecast.cost import Memory
from harness.forecast.passes import describe_passes, split_to_fit
from harness.plan import make_plans
from harness.planning.specs import Plan
from harness.terminal import Terminal

FILE = """\
name: m
reference: {model: pocket}
matrix: {bits: [3, 4, 8]}
variant: {compress: [{backend: round_to_nearest, bits: $bits, granularity: group, group_size: 128}]}
suites: [./suite.yaml]
gates: [./gate.yaml]
"""
SUITE = "documents: {data: pocket-heldout, max: 4, context: 32}\nmeasures: [divergence, memory]\n"
GATE = "rules: [{rule: at_most, metric: divergence.kl_mean, limit: 9.0, why: any}]\n"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in (("m.yaml", FILE), ("suite.yaml", SUITE), ("gate.yaml", GATE)):
        (tmp_path / name).write_text(text)
    return tmp_path


def limit_memory(monkeypatch: pytest.MonkeyPatch, total: float | None) -> None:
    """A machine of ``total`` bytes, where a model takes 10, and the work on a variant 5."""
    monkeypatch.setattr("harness.forecast.passes.total_memory", lambda: total)
    monkeypatch.setattr("harness.forecast.passes.memory", lambda plan: Memory(10, 10, 25, ""))


@pytest.mark.parametrize(
    ("total", "sizes"),
    [(None, [3]), (45, [3]), (44, [2, 1]), (35, [2, 1]), (34, [1, 1, 1]), (1, [1, 1, 1])],
)
def test_every_pass_takes_as_many_variants_as_fit(
    desk: Path, monkeypatch: pytest.MonkeyPatch, total: float | None, sizes: list[int]
) -> None:
    limit_memory(monkeypatch, total)
    plans = make_plans(desk / "m.yaml")
    passes = split_to_fit(plans)
    assert [len(each) for each in passes] == sizes
    assert [plan for each in passes for plan in each] == plans
    assert bool(describe_passes(passes)) == (len(sizes) > 1)


def test_unknown_sizes_and_gpus_are_not_split(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = make_plans(desk / "m.yaml")
    limit_memory(monkeypatch, 1)
    on_gpu = [
        plan.model_copy(update={"reference": plan.reference.model_copy(update={"device": "cuda"})}) for plan in plans
    ]
    assert split_to_fit(on_gpu) == [on_gpu]
    monkeypatch.setattr("harness.forecast.passes.memory", lambda plan: "not known")
    assert split_to_fit(plans) == [plans]


def test_numbers_are_the_same_in_one_pass_and_in_several(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, groups = harness.run.run_group, []

    def watch(plans: Sequence[Plan], *more: Any) -> Any:
        groups.append([plan.name for plan in plans])
        return whole(plans, *more)

    monkeypatch.setattr(harness.run, "run_group", watch)
    found: dict[str, list[Any]] = {}
    for out, total in (("one", 100), ("several", 35)):
        limit_memory(monkeypatch, total)
        said = io.StringIO()
        assert check([Path("m.yaml")], Path(out), Terminal(Console(file=said, width=1000))) == 0
        runs = [json.loads((desk / out / f"m-bits{bits}" / "run.json").read_text()) for bits in (3, 4, 8)]
        found[out] = [(run["measurements"], run["verdicts"], run["data_key"]) for run in runs]
        assert ("2 passes of 2 and 1 variants, each with the reference again" in said.getvalue()) == (total == 35)
    assert groups == [["m-bits3", "m-bits4", "m-bits8"], ["m-bits3", "m-bits4"], ["m-bits8"]]
    assert found["one"] == found["several"]
    assert _run(["plan", "m.yaml", "--out", "none"]) == 0
    assert "2 passes of 2 and 1 variants" in " ".join(capsys.readouterr().out.split())
