"""ModelOpt: beside the library called by hand, and beside our own rounding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from harness.backends.modelopt import _CONFIGURATIONS, Modelopt
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError, ModelError
from harness.models.loading import load
from harness.modules.grid_check import check_grids
from harness.modules.linears import linears
from harness.records import ModelSpec
from harness.testing import trials
from harness.testing.models import random_documents, tiny_tokenizer

mtq: Any = pytest.importorskip("modelopt.torch.quantization")
torch.set_num_threads(1)
SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}


def reference() -> PreTrainedModel:
    return trials.make_model("llama", SIZES, torch.float32, "cpu")


def ours(**settings: Any) -> trials.Trial:
    return trials.compress(Modelopt(**settings), reference())


def test_configurations_are_those_of_the_library() -> None:
    assert Modelopt.model_fields["scheme"].annotation.__args__ == tuple(_CONFIGURATIONS)  # type: ignore[union-attr]
    for name in _CONFIGURATIONS.values():
        assert "quant_cfg" in getattr(mtq, name)


@pytest.mark.parametrize(
    "scheme", ["int8", "int8_smoothquant", "int8_weights", "fp8", "fp8_per_channel_per_token", "int4", "int4_awq"]
)
def test_it_is_what_the_library_makes_by_hand(scheme: str) -> None:
    model, documents = reference(), random_documents(8, 24, seed=1)

    def forward_all(model: Any) -> None:
        for ids in documents:
            model(input_ids=ids[None], use_cache=False)

    with torch.no_grad():
        mtq.quantize(model, copy.deepcopy(getattr(mtq, _CONFIGURATIONS[scheme])), forward_all)
    found = ours(scheme=scheme)
    assert trials.logits(found.model).equal(trials.logits(model))
    assert not trials.logits(model).equal(trials.logits(found.reference))


@pytest.mark.parametrize(
    ("theirs", "same"),
    [
        ({"scheme": "int8_weights"}, {"bits": 8, "granularity": "channel"}),
        ({"scheme": "int4", "group_size": 16}, {"bits": 4, "group_size": 16}),
    ],
)
def test_rounding_gives_the_codes_of_our_own(theirs: dict[str, Any], same: dict[str, Any]) -> None:
    mine, found = trials.compress(RoundToNearest(**same), reference()), ours(**theirs)
    weights = dict(linears(mine.model))
    for name, module in linears(found.model):
        apart = (module.weight - weights[name].weight).abs().max()
        assert apart <= 1e-6 * module.weight.abs().max(), name
    strip = {"backend", "stored_bytes", "bits_per_weight", "type"}
    assert [m.model_dump(exclude=strip) for m in found.done.modules] == [
        m.model_dump(exclude=strip) for m in mine.done.modules
    ]


@pytest.mark.parametrize("scheme", ["nvfp4", "mxfp4", "mxfp8"])
def test_what_needs_cuda_is_refused_elsewhere(scheme: str) -> None:
    with pytest.raises(BackendError, match=rf"modelopt: model\.layers\.0.*is on cpu.*{scheme} on CUDA only"):
        ours(scheme=scheme)


def test_the_last_group_may_be_shorter() -> None:
    found = ours(scheme="int4", group_size=48)
    check_grids(found.model, {each.module: each for each in found.done.modules})
    assert found.done.modules[0].bits_per_weight == 4 + 32 * 3 / 128
    with pytest.raises(ValidationError):
        Modelopt(scheme="fp8", group_size=16)


def test_layers_that_are_skipped_stay_as_they_are() -> None:
    found = ours(scheme="int8", only=("*.mlp.*", "lm_head"), skip=("*.up_proj",))
    assert {each.module.rpartition(".")[2] for each in found.done.modules} == {"gate_proj", "down_proj", "lm_head"}
    before = dict(linears(found.reference))
    changed = {name for name, module in linears(found.model) if not module.weight.equal(before[name].weight)}
    assert changed == {each.module for each in found.done.modules}


def test_its_exported_checkpoint_is_not_taken_for_a_model(tmp_path: Path) -> None:
    step = Modelopt(scheme="fp8")
    trial = trials.compress(step, reference())
    live = trials.logits(trial.model)
    step.save(trial.model, tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert trials.logits(trial.model).equal(live)
    with pytest.raises(ModelError, match="modelopt"):
        load(ModelSpec(model=str(tmp_path)), "shipped")
