"""Parameters in single precision while they are trained, and models that cannot be."""

from __future__ import annotations

import pytest
import torch

from harness.errors import BackendError
from harness.training.precision import float32_parameters, refuse_packed
from tests.helpers.pass_pairs import llama


def test_every_weight_comes_back_in_its_own_dtype() -> None:
    model = llama(tie_word_embeddings=True).to(torch.bfloat16)
    model.model.norm.float()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with float32_parameters(model):
        assert {each.dtype for each in model.parameters()} == {torch.float32}
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, each in model.state_dict().items():
        assert each.dtype == before[name].dtype
        assert torch.equal(each, before[name])


def test_packed_weights_cannot_be_trained() -> None:
    model = llama()
    packed = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    model.model.layers[1].mlp.down_proj.weight = packed
    with pytest.raises(BackendError, match=r"made: .* is packed \(model.layers.1.mlp.down_proj.weight\)"):
        refuse_packed("made", model)
