"""GPTQModel in an environment of its own, and what the worker reads from its checkpoints."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.backends._gptqmodel_worker import _unpack
from harness.backends.gptqmodel import GptqModel
from harness.errors import BackendError
from harness.testing import trials
from harness.testing.models import random_documents, tiny_llama, tiny_tokenizer

torch.set_num_threads(1)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_packed_codes_are_read_as_they_are_meant(tmp_path: Path, bits: int, version: str) -> None:
    chance, outputs, inputs, size = torch.Generator().manual_seed(bits), 32, 64, 16
    codes_IO = torch.randint(2**bits, (inputs, outputs), generator=chance)
    zeros_GO = torch.randint(2**bits, (inputs // size, outputs), generator=chance)
    scales_GO = torch.rand(inputs // size, outputs, generator=chance).half()
    index_I = torch.randperm(inputs, generator=chance) // size  # groups in the order of activations

    def word(fields: list[int]) -> int:
        whole = sum(field << (bits * place) for place, field in enumerate(fields))
        return whole - 2**32 if whole >= 2**31 else whole

    each = 32 // bits
    stored = (zeros_GO - (1 if version == "gptq" else 0)) % 2**bits
    qweight = [[word(codes_IO[i : i + each, o].tolist()) for o in range(outputs)] for i in range(0, inputs, each)]
    qzeros = [[word(row[o : o + each].tolist()) for o in range(0, outputs, each)] for row in stored]
    (tmp_path / "checkpoint").mkdir()
    tensors = {
        "a.b.qweight": torch.tensor(qweight, dtype=torch.int32),
        "a.b.qzeros": torch.tensor(qzeros, dtype=torch.int32),
        "a.b.scales": scales_GO,
        "a.b.g_idx": index_I.int(),
        "a.norm.weight": torch.ones(3),
    }
    save_file(tensors, tmp_path / "checkpoint" / "model.safetensors")
    said = {"quantization_config": {"checkpoint_format": version}}
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(said))
    _unpack(tmp_path, {"bits": bits, "group_size": size, "sym": False})

    expected = torch.empty(outputs, inputs)
    for i in range(inputs):
        for o in range(outputs):
            group = int(index_I[i])
            expected[o, i] = float(scales_GO[group, o]) * (int(codes_IO[i, o]) - int(zeros_GO[group, o]))
    assert load_file(tmp_path / "result.safetensors")["a.b"].equal(expected)
    packed = json.loads((tmp_path / "result.json").read_text())
    bytes_of = (inputs * outputs + inputs // size * outputs) * bits // 8 + inputs // size * outputs * 2 + inputs * 4
    assert packed == {"a.b": {"bits": bits, "group_size": size, "symmetric": False, "stored_bytes": bytes_of}}


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
