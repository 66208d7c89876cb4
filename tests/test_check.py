"""What is said last when a verdict was reached and an output could not be written."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

import harness.check
from harness.check import check
from harness.errors import WriteError
from harness.terminal import Terminal
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


def checked(folder: Path, limit: float) -> tuple[int, str]:
    save(tiny_llama(), folder / "model")
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "gate.yaml").write_text(GATE.format(limit=limit))
    (folder / "v.yaml").write_text(VARIANT)
    with (folder / "out.txt").open("w") as stream:
        code = check([folder / "v.yaml"], folder / "runs", Terminal(Console(file=stream, width=1000)))
    return code, (folder / "out.txt").read_text()


@pytest.mark.parametrize(("limit", "code"), [(32.0, 2), (1.0, 1)])
def test_the_last_word_is_that_nothing_passes_without_its_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float, code: int
) -> None:
    monkeypatch.setattr(harness.check, "write_outputs", refuse)
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
