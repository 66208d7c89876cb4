"""Which kernels a pass takes, and that compiled ones are never trusted unseen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from harness.lockstep import kernels as kernels_module
from harness.lockstep import native
from harness.lockstep.kernels import EAGER, WORTH_COMPILING, Kernels, choose_kernels
from harness.lockstep.logit_statistics import logit_sums
from harness.lockstep.module_statistics import channel_moments, row_errors
from harness.lockstep.pass_report import Name
from harness.system import native_code
from tests.helpers.pass_pairs import damaged, llama, louder, observe

CPU = torch.device("cpu")


def test_kernels_are_compiled_only_where_the_plan_makes_it_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(*_: Any, **__: Any) -> Any:
        tried.append(1)
        raise RuntimeError("no such header")

    monkeypatch.setattr(native_code, "find_compiler", lambda: "c++")
    monkeypatch.setattr(kernels_module, "_compiled_logits", refuse)
    small = choose_kernels("auto", WORTH_COMPILING // 1000 - 1, 1000, torch.float64, CPU)
    assert (small.name, small.note, tried) == ("eager", "", [])
    large = choose_kernels("auto", WORTH_COMPILING // 1000, 1000, torch.float64, CPU)
    assert tried
    assert large.name == "eager"
    assert "RuntimeError: no such header" in large.note
    monkeypatch.setattr(native_code, "find_compiler", lambda: None)
    assert "compiler" in choose_kernels("compiled", 1, 1000, torch.float32, CPU).note


@pytest.mark.parametrize("dtype", native.TYPES)
def test_native_code_is_taken_on_a_cpu_however_short_the_pass(dtype: torch.dtype) -> None:
    wanted = "eager" if native_code.find_compiler() is None else "native"
    assert choose_kernels("auto", 1, 10, dtype, CPU).name == wanted
    assert choose_kernels("eager", 1, 10, dtype, CPU).name == "eager"


def test_native_code_that_cannot_be_built_or_gives_other_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        logit_sums, row_errors = staticmethod(logit_sums), staticmethod(row_errors)

        def channel_moments(self, values: Tensor, valid: Tensor, threshold: float) -> tuple[Tensor, ...]:
            return tuple(column * 1.01 for column in channel_moments(values, valid, threshold))

    monkeypatch.setattr(native, "build", Wrong)
    refused = choose_kernels("native", 1, 10, torch.float32, CPU)
    assert refused.name == "eager"
    assert "the native channel moments differ from the plain ones" in refused.note

    def fail() -> None:
        raise native_code.BuildError("c++ failed: no such header")

    monkeypatch.setattr(native, "build", fail)
    assert "no such header" in choose_kernels("native", 1, 10, torch.float32, CPU).note
    assert choose_kernels("auto", 1, 10, torch.float32, CPU) == EAGER


def test_a_compiled_kernel_that_gives_other_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(values: Tensor, valid: Tensor, threshold: float) -> tuple[Tensor, ...]:
        return tuple(column * 1.01 for column in channel_moments(values, valid, threshold))

    monkeypatch.setattr(native_code, "find_compiler", lambda: "c++")
    monkeypatch.setattr(kernels_module, "_compiled_logits", lambda: logit_sums)
    monkeypatch.setattr(kernels_module, "_compiled_errors", lambda: row_errors)
    monkeypatch.setattr(kernels_module, "_compiled_moments", lambda: channel_moments)
    assert choose_kernels("compiled", 1, 10, torch.float32, CPU).name == "compiled"
    monkeypatch.setattr(kernels_module, "_compiled_moments", lambda: wrong)
    refused = choose_kernels("compiled", 1, 10, torch.float32, CPU)
    assert refused.name == "eager"
    assert "channel moments differ from the plain ones" in refused.note


def test_a_gpu_has_kernels_of_its_own_where_triton_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed to be asked: what is made is a stand-in."""
    gpu, asked = torch.device("cuda"), []

    def make() -> Kernels:
        asked.append("triton")
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(kernels_module._MAKERS, "triton", make)
    monkeypatch.setattr(kernels_module, "find_spec", lambda _: object())
    for dtype in native.TYPES:
        assert choose_kernels("auto", 1, 10, dtype, gpu) == EAGER
    assert asked == ["triton"] * len(native.TYPES)
    assert "no kernel image" in choose_kernels("triton", 1, 10, torch.float32, gpu).note
    asked.clear()
    choose_kernels("auto", 1, 10, torch.float64, gpu)
    choose_kernels("auto", 1, 10, torch.float32, CPU)
    monkeypatch.setattr(kernels_module, "find_spec", lambda _: None)
    choose_kernels("auto", 1, 10, torch.float32, gpu)
    assert not asked


def test_equal_rows_that_differ_by_rounding_refuse_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a multiplication fused with an addition would do."""

    def fused(reference: Tensor, variant: Tensor) -> tuple[Tensor, ...]:
        sums = logit_sums(reference, variant)
        return *sums[:-1], sums[-1] + 1e-8

    monkeypatch.setitem(kernels_module._MAKERS, "triton", lambda: replace(EAGER, name="triton", logits=fused))
    assert "the triton logit statistics differ" in choose_kernels("triton", 1, 10, torch.float32, CPU).note


@pytest.mark.parametrize("kernel", ["native", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", native.TYPES)
def test_faster_and_plain_passes_agree(tmp_path: Path, dtype: torch.dtype, kernel: Name) -> None:
    if native_code.find_compiler() is None:
        pytest.skip("this machine has no C++ compiler")
    reference = louder(llama(), 3.0).to(dtype)
    variant = damaged(reference)
    report, (faster,) = observe(tmp_path / "c", reference, [variant], kernel=kernel)
    assert report.kernel == kernel
    _, (plain,) = observe(tmp_path / "p", reference, [variant], kernel="eager")
    for table in ("tokens", "layers", "channels"):
        pd.testing.assert_frame_equal(faster[table], plain[table], rtol=1e-4, atol=1e-5)
