"""Every place of a small check that needs memory is refused it once: no wrong pass, nothing lost, the right class."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

import harness
from harness.check import check
from harness.cli import _explain
from harness.errors import classify
from harness.terminal import Terminal
from tests.helpers.tiny_models import save, tiny_llama

VARIANT = """\
name: v
reference: {model: ./model}
variant: {compress: [{backend: round_to_nearest, bits: 8}]}
suites: [./suite.yaml]
gates: [./gate.yaml]
weak_reference: random weights, a test
"""
SUITE = """\
documents: {data: ./texts.txt, context: 32}
measures: [divergence, perplexity, layer_error, weight_error, outliers, logits, coverage]
"""
GATE = """\
rules:
  - {rule: at_most, metric: logits.max_abs_diff, limit: 1000, decide: point, why: any}
  - {rule: at_most, metric: divergence.kl_mean, limit: 50, min_documents: 2, why: any}
"""
HOME = str(Path(harness.__file__).parent)
Site = tuple[str, int, str]
KINDS: dict[str, Callable[[], BaseException]] = {
    "of Python": MemoryError,
    "of the device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "of the processor": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
}


class Memory(TorchDispatchMode):
    """Counts tensor operations by the place in the harness they come from, and refuses memory at the first of one."""

    def __init__(self, refused: Site | None = None, error: Callable[[], BaseException] = MemoryError) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.refused, self.error, self.sites, self.fired = refused, error, dict[Site, int](), False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        site = self._find_site(str(func))
        self.sites[site] = self.sites.get(site, 0) + 1
        if site == self.refused and not self.fired:
            self.fired = True
            raise self.error()
        return func(*args, **(kwargs or {}))

    def _find_site(self, operation: str) -> Site:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(HOME):
            frame = frame.f_back
        return (frame.f_code.co_filename.removeprefix(HOME), frame.f_lineno, operation) if frame else ("", 0, operation)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    save(tiny_llama(), folder / "model")
    files = {"v.yaml": VARIANT, "suite.yaml": SUITE, "gate.yaml": GATE}
    for name, content in files.items():
        (folder / name).write_text(content)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "more", "of", "them", "there"]
    texts = [" ".join(words[i % 5 :] + words[: i % 7] + [str(i)]) for i in range(12)]
    (folder / "texts.txt").write_text("\n\n".join(texts))
    return folder


def run(desk: Path, out: Path, memory: Memory) -> tuple[int, str]:
    said = io.StringIO()
    try:
        with memory:
            code = check([desk / "v.yaml"], out, Terminal(Console(file=said, width=2000)))
    except BaseException as error:  # noqa: BLE001 - as the command line does
        code = 2
        said.write(f"{_explain(error)}\nclass of failure: {classify(error)}")
    return code, said.getvalue()


def result(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "v" / "run.json").read_text())
    content.pop("clock")
    return content


@pytest.fixture(scope="module")
def undisturbed(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Site]]:
    """The result, and every place of the harness that computes with tensors, in the order of their first turn."""
    out, memory = tmp_path_factory.mktemp("undisturbed"), Memory()
    code, said = run(desk, out, memory)
    assert code == 0, said
    return result(out), list(memory.sites)


def check_refusal(desk: Path, out: Path, site: Site, kind: str, expected: dict[str, Any]) -> None:
    memory = Memory(site, KINDS[kind])
    code, said = run(desk, out, memory)
    where = f"memory {kind} refused at {site}: exit code {code}: {said}"
    assert memory.fired, where
    if code == 0:  # it did with less, and every number is there
        again = result(out)
        assert [(m["name"], m["n"]) for m in again["measurements"]] == [
            (m["name"], m["n"]) for m in expected["measurements"]
        ], where
        assert again["verdict"] == "pass", where
    else:
        assert code == 2, where
        assert "May ship" not in said, where
        assert "class of failure: resources" in said, where
        assert "defect of the harness" not in said, where
    assert run(desk, out, Memory())[0] == 0, where
    final = result(out)
    assert final == expected or code == 0, where


def test_some_places(desk: Path, tmp_path: Path, undisturbed: tuple[dict[str, Any], list[Site]]) -> None:
    expected, sites = undisturbed
    assert len(sites) >= 100
    for index, site in enumerate(sites[7 :: len(sites) // 5]):
        check_refusal(desk, tmp_path / str(index), site, list(KINDS)[index % 3], expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_place(desk: Path, tmp_path: Path, undisturbed: tuple[dict[str, Any], list[Site]], kind: str) -> None:
    expected, sites = undisturbed
    for index, site in enumerate(sites):
        check_refusal(desk, tmp_path / str(index), site, kind, expected)
