"""AutoRound: beside the library called by hand, and what tuning gains over rounding."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from harness.backends._common.simulating import preserve_global_state
from harness.backends.autoround import Autoround, _cut_to_one_length
from harness.errors import BackendError
from harness.modules.grid_check import check_grids
from harness.modules.linears import linears
from harness.testing import trials
from harness.testing.models import random_documents, tiny_tokenizer

pytest.importorskip("auto_round")
torch.set_num_threads(1)


def reference() -> PreTrainedModel:
    return trials.make_model("llama", {"intermediate_size": 128}, torch.float32, "cpu")


def ours(**settings: Any) -> trials.Trial:
    return trials.compress(Autoround(**settings), reference())


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_is_what_the_library_makes_by_hand(symmetric: bool) -> None:
    from auto_round import AutoRound

    model = reference()
    documents = [{"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}
                 for ids in random_documents(8, 24, seed=1)]  # fmt: skip
    scheme = {"bits": 3, "group_size": 16, "sym": symmetric, "data_type": "int", "act_bits": 16}
    with preserve_global_state(), torch.enable_grad():
        gc.freeze()
        made, _ = AutoRound(
            model, tiny_tokenizer(), scheme=scheme, dataset=documents, iters=4, seqlen=24, nsamples=8, batch_size=8,
            device_map="cpu", enable_torch_compile=False, seed=42, amp=False, low_cpu_mem_usage=False,
        ).quantize()  # fmt: skip
    gc.unfreeze()
    found = ours(bits=3, group_size=16, symmetric=symmetric, iterations=4)
    wanted = dict(linears(made))
    for name, module in linears(found.model):
        assert module.weight.equal(wanted[name].weight), name
    check_grids(found.model, {each.module: each for each in found.done.modules})


def test_tuning_beats_rounding() -> None:
    settings: dict[str, Any] = {"bits": 2, "group_size": 16, "symmetric": False}
    tuned, plain = ours(**settings, iterations=20), ours(**settings, iterations=0)
    assert trials.divergence(tuned) < trials.divergence(plain)
    assert tuned.done.modules[0].format.ranges == "output_error"
    # A scale of 16 bits and a zero point of 2 for 16 codes.
    assert tuned.done.modules[0].bits_per_weight == 2 + 18 / 16


def test_documents_are_cut_at_the_length_that_keeps_most_tokens() -> None:
    documents = [torch.arange(size) for size in (4, 10, 10, 12, 3)]
    length, rows = _cut_to_one_length(documents)
    assert (length, len(rows)) == (10, 3)
    assert all(row["input_ids"].tolist() == [list(range(10))] for row in rows)
    done = trials.compress(Autoround(bits=4, group_size=16, iterations=1), reference()).done
    assert [note.text for note in done.notes] == ["autoround: 8 of 8 documents, cut at 24 tokens"]


def test_nothing_of_the_library_stays_on_the_model() -> None:
    found = ours(bits=4, group_size=16, iterations=1, only=("*.q_proj", "lm_head"), skip=())
    assert {each.module.rpartition(".")[2] for each in found.done.modules} == {"q_proj", "lm_head"}
    before = dict(found.reference.named_modules())
    for name, module in found.model.named_modules():
        assert vars(module).keys() == vars(before[name]).keys(), name
    unchanged = {name for name, module in linears(found.model)
                 if module.weight.equal(before[name].weight)}  # fmt: skip
    assert unchanged == {name for name, _ in linears(found.model)} - {each.module for each in found.done.modules}


def test_sizes_that_the_library_leaves_alone_are_refused() -> None:
    with pytest.raises(BackendError, match=r"autoround: model\.layers\.0\.mlp\.gate_proj: is 112×64"):
        trials.compress(Autoround(bits=4), trials.make_model("llama", {}, torch.float32, "cpu"))


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError):
        Autoround(bits=4, iterations=0, batch=4)
