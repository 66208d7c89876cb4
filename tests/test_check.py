"""What is said last when a verdict was reached and an output could not be written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import harness.check
import harness.running.publishing
from harness.check import check
from harness.errors import WriteError
from harness.records import Run
from harness.report.summaries.cost import list_times
from harness.running import pairs, session
from harness.system.stopwatch import keep_time, measure_shared
from harness.terminal import Terminal
from harness.write import read_run, write_again
from tests.helpers.tiny_models import save, tiny_llama

SUITE = "measures: [memory, hardware]\n"
GATE = "rules: [{{rule: at_most, metric: memory.bits_per_weight, limit: {limit}, why: any number of bits}}]\n"
VARIANT = """\
name: v
reference: {model: ./model}
variant: {compress: [{backend: round_to_nearest, bits: 3, group_size: 48}]}
target: cuda-9.0
suites: [./suite.yaml]
gates: [./gate.yaml]
"""


def refuse(*_: object) -> None:
    raise WriteError("report.html cannot be written: the disk is full")


def checked(folder: Path, limit: float, names: tuple[str, ...] = ("v",)) -> tuple[int, str]:
    save(tiny_llama(), folder / "model")
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "gate.yaml").write_text(GATE.format(limit=limit))
    files = [folder / f"{name}.yaml" for name in names]
    for file in files:
        file.write_text(VARIANT.replace("name: v", f"name: {file.stem}"))
    with (folder / "out.txt").open("w") as stream:
        code = check(files, folder / "runs", Terminal(Console(file=stream, width=1000)))
    return code, (folder / "out.txt").read_text()


@pytest.mark.parametrize(("limit", "code"), [(32.0, 2), (1.0, 1)])
def test_the_last_word_is_that_nothing_passes_without_its_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, code: int
) -> None:
    monkeypatch.setattr(harness.running.publishing, "write_outputs", refuse)
    found, said = checked(tmp_path, limit)
    assert found == code
    last = said.rstrip().splitlines()[-2:]
    assert "the disk is full" in last[0]
    assert f"the exit code is {code}: nothing passes without all of its outputs" in last[1]
    assert "report:" not in said, "a report that is not there is not pointed to"


def test_formats_without_a_kernel_are_said_before_and_after_the_run(tmp_path: Path) -> None:
    code, said = checked(tmp_path, 32.0)
    assert code == 0, said
    before, after = said.split("make variants", 1)
    assert "note v: cuda-9.0: int3 in groups of 48 (step round_to_nearest) has no kernel" in before
    assert "warning hardware: cuda-9.0: int3 in groups of 48 has no kernel (14 modules, model.layers.0" in after
    assert said.rstrip().splitlines()[-1].strip().startswith("report:")


TAKES = {
    (harness.check, "make_all_plans"): 2.0,
    (harness.check, "import_transformers"): 4.0,
    (session, "load"): 8.0,
    (session, "encode_suite"): 16.0,
    (pairs, "make_variant"): 32.0,
    (pairs, "describe_environment"): 64.0,
    (harness.running.publishing, "judge"): 128.0,
    (harness.running.publishing, "write_outputs"): 256.0,
}
"""Seconds that a function takes on a clock that stands still otherwise."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def keep_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps time while the functions of TAKES take their seconds, in a process that is one second old."""
    clock = Clock()

    def slow(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            clock.now += seconds
            return function(*given, **named)

        return call

    for (module, name), seconds in TAKES.items():
        monkeypatch.setattr(module, name, slow(getattr(module, name), seconds))
    monkeypatch.setattr(harness.running.publishing, "perf_counter", clock)
    with keep_time(before=1.0, clock=clock):
        with measure_shared("start"):
            clock.now += 512.0
        yield


def times_of(run: Run) -> dict[str, float]:
    return {each.stage: each.seconds for each in list_times(run) if each.seconds or each.share is None}


def test_the_clock_of_a_run_explains_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with keep_all(monkeypatch):
        checked(tmp_path, 32.0)
    run = read_run(tmp_path / "runs/v")
    stages = {"start": 512.0, "plan": 2.0, "imports": 4.0, "load reference": 8.0, "encode documents": 16.0}
    own = {"make variant": 32.0, "describe variant": 64.0, "judge": 128.0}
    assert times_of(run) == {**stages, **own, "not explained": 1.0}
    assert run.clock.elapsed == sum(times_of(run).values()) == 1 + 512 + sum(TAKES.values()) - 256
    assert run.clock.outputs == 256
    report = (tmp_path / "runs/v/report.html").read_text()
    told = report.partition("<h3>Time of the check</h3>")[2]
    assert "767 s from the start of the process to the verdict" in told
    assert "<div><dt>judge</dt><dd>128 s · 17 %</dd></div>" in told
    assert "<div><dt>not explained</dt><dd>1 s · 0.13 %</dd></div>" in told
    write_again(tmp_path / "runs/v", ["report_html"])
    assert (tmp_path / "runs/v/report.html").read_text() == report


def test_what_other_variants_took_is_no_time_of_a_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with keep_all(monkeypatch):
        checked(tmp_path, 32.0, names=("v", "w"))
    clocks = [read_run(tmp_path / "runs" / name).clock for name in ("v", "w")]
    assert [clock.seconds["make variant"] for clock in clocks] == [32, 32]
    assert [clock.seconds["judge"] for clock in clocks] == [128, 128]
    # The second was made before the first was judged, and the first was written before the second was judged.
    assert [clock.others for clock in clocks] == [32 + 64, 32 + 64 + 128 + 256]
    assert [clock.unexplained for clock in clocks] == [1, 1]


def test_what_is_said_of_a_place_in_a_gate_is_one_line_for_all_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their numbers may differ, by their earlier runs."""
    texts = {"a": "power 55 %", "b": "power 60 %", "c": "power 55 %"}
    monkeypatch.setattr(harness.check, "target_notes", lambda plan: [])
    monkeypatch.setattr(
        harness.check,
        "notes_before",
        lambda plan, folder: {("g.yaml:3: rules[0].margin", 0): texts[plan.name], ("g.yaml:4: rules[1]", 0): "never"},
    )
    said: list[str] = []
    plans: Any = [SimpleNamespace(name=name) for name in texts]
    terminal: Any = SimpleNamespace(note=said.append)
    harness.check._note_together(plans, dict.fromkeys(texts, tmp_path), terminal)
    assert said == ["a, b, c: power 55 % (for 1 of them with other numbers)", "a, b, c: never"]
