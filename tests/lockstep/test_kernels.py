"""Which kernels a pass takes, and that compiled ones are never trusted unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from harness.lockstep import kernels as kernels_module
from harness.lockstep.kernels import WORTH_COMPILING, choose_kernels
from harness.lockstep.logit_statistics import logit_sums
from harness.lockstep.module_statistics import channel_moments, row_errors
from tests.helpers.pass_pairs import damaged, llama, louder, observe

CPU = torch.device("cpu")


def test_kernels_are_compiled_only_where_the_plan_makes_it_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(*_: Any, **__: Any) -> Any:
        tried.append(1)
        raise RuntimeError("no such header")

    monkeypatch.setattr(kernels_module, "_has_compiler", lambda: True)
    monkeypatch.setattr(kernels_module, "_compiled_logits", refuse)
    small = choose_kernels("auto", WORTH_COMPILING // 1000 - 1, 1000, torch.float32, CPU)
    assert (small.name, small.note, tried) == ("eager", "", [])
    large = choose_kernels("auto", WORTH_COMPILING // 1000, 1000, torch.float32, CPU)
    assert tried
    assert large.name == "eager"
    assert "RuntimeError: no such header" in large.note
    monkeypatch.setattr(kernels_module, "_has_compiler", lambda: False)
    assert "compiler" in choose_kernels("compiled", 1, 1000, torch.float32, CPU).note


def test_a_compiled_kernel_that_gives_other_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(values: Tensor, valid: Tensor, threshold: float) -> tuple[Tensor, ...]:
        return tuple(column * 1.01 for column in channel_moments(values, valid, threshold))

    monkeypatch.setattr(kernels_module, "_has_compiler", lambda: True)
    monkeypatch.setattr(kernels_module, "_compiled_logits", lambda: logit_sums)
    monkeypatch.setattr(kernels_module, "_compiled_errors", lambda: row_errors)
    monkeypatch.setattr(kernels_module, "_compiled_moments", lambda: channel_moments)
    assert choose_kernels("compiled", 1, 10, torch.float32, CPU).name == "compiled"
    monkeypatch.setattr(kernels_module, "_compiled_moments", lambda: wrong)
    refused = choose_kernels("compiled", 1, 10, torch.float32, CPU)
    assert refused.name == "eager"
    assert "channel moments differ from the plain ones" in refused.note


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_and_plain_passes_agree(tmp_path: Path, dtype: torch.dtype) -> None:
    reference = louder(llama(), 3.0).to(dtype)
    variant = damaged(reference)
    report, (compiled,) = observe(tmp_path / "c", reference, [variant], kernel="compiled")
    assert report.kernel == "compiled"
    _, (plain,) = observe(tmp_path / "p", reference, [variant], kernel="eager")
    for table in ("tokens", "layers", "channels"):
        pd.testing.assert_frame_equal(compiled[table], plain[table], rtol=1e-4, atol=1e-5)
