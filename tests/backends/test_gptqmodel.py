"""GPTQModel in an environment of its own, and its checkpoints as the library itself reads them."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.backends.gptqmodel import GptqModel
from harness.errors import BackendError
from harness.models.loading import load
from harness.records import ModelSpec
from harness.testing import trials
from harness.testing.models import random_documents, tiny_llama, tiny_tokenizer

torch.set_num_threads(1)


def test_sizes_that_cannot_be_packed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GptqModel, "lacks", lambda step: "")
    with pytest.raises(BackendError, match=r"gptqmodel: model\.layers\.0\.mlp\.gate_proj: is 112×64"):
        GptqModel(bits=4, group_size=32).compress(tiny_llama(), tiny_tokenizer(), random_documents(2, 8, seed=1))


@pytest.mark.slow
def test_the_library_beats_rounding() -> None:
    step = GptqModel(bits=4, group_size=32)
    if lack := step.lacks():
        pytest.skip(lack)
    reference = trials.make_model("llama", {"intermediate_size": 128}, torch.float32, "cpu")
    done = trials.compress(step, reference)
    again = step.compress(copy.deepcopy(reference), tiny_tokenizer(), trials.calibration_for(step))
    assert all(
        a.equal(b) for a, b in zip(done.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    )
    plain = trials.compress(GptqModel(bits=2, group_size=32), reference)
    assert trials.divergence(done) < trials.divergence(plain)


SETTINGS = [{"bits": bits} for bits in (2, 3, 4, 8)] + [{"bits": 4, "symmetric": False}, {"bits": 4, "act_order": True}]
WEIGHTS = """
import os, sys
os.cpu_count = lambda: 8  # as the worker does
import torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import save_file
torch.set_num_threads(1)
model = GPTQModel.load(sys.argv[1], device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16).model
layers = {name: module for name, module in model.named_modules() if hasattr(module, "dequantize_weight")}
save_file({name: module.dequantize_weight().T.float().contiguous() for name, module in layers.items()}, sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_checkpoint_means_here_what_the_library_takes_it_for(settings: dict[str, Any], tmp_path: Path) -> None:
    step = GptqModel(group_size=32, **settings)
    if lack := step.lacks():
        pytest.skip(lack)
    reference = trials.make_model("llama", {"intermediate_size": 128}, torch.float32, "cpu")
    done = trials.compress(step, reference)
    step.save(done.model, tmp_path / "shipped")
    tiny_tokenizer().save_pretrained(tmp_path / "shipped")
    read = load(ModelSpec(model=str(tmp_path / "shipped")), "x").model
    state, measured = read.state_dict(), done.model.state_dict()
    packed = {f"{module.module}.weight" for module in done.done.modules}
    assert all(state[name].equal(measured[name]) for name in packed)
    # The library keeps what it does not pack in 16 bits.
    assert all(torch.allclose(state[name], measured[name], rtol=1e-2) for name in measured.keys() - packed)
    command = [str(step.interpreter()), "-c", WEIGHTS, str(tmp_path / "shipped"), str(tmp_path / "weights")]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert told.returncode == 0, told.stderr[-3000:]
    theirs = load_file(tmp_path / "weights")
    assert set(theirs) == {module.module for module in done.done.modules}
    for name, weight in theirs.items():
        assert torch.allclose(state[f"{name}.weight"], weight, rtol=2e-3, atol=1e-6), name
