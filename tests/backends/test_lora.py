"""Fresh adapters: nothing changes at first, the formula, the same bytes every time, and a base that stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from harness.models.identity import weights_sha256
from harness.modules.linears import linears, output_head, weight_of
from tests.helpers.tiny_models import family, tiny_gpt2, tiny_llama

pytest.importorskip("peft")

from harness.backends._common.lora import Inserted, Shape, insert_adapter

IDS = torch.tensor([[0, 5, 9, 2, 40, 33, 7, 90]])


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def targets(model: PreTrainedModel) -> list[str]:
    head = output_head(model)
    return [name for name, _ in linears(model) if name != head]


def moved(inserted: Inserted, seed: int = 1) -> Inserted:
    """As after a training: B is not 0, nor the magnitude the norm."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, each in sorted(inserted.parameters.items()):
            if "lora_A" not in name:
                each.add_(0.2 * torch.randn(each.shape, generator=generator))
    return inserted


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", ["llama_tied", "qwen3", "gpt2", "mixtral", "listed_experts", "falcon"])
def test_at_first_it_changes_nothing_and_taken_off_nothing_is_left(name: str, dora: bool) -> None:
    model = family(name)
    before, expected, modules = weights_sha256(model), logits(model), [key for key, _ in model.named_modules()]
    state = torch.get_rng_state()
    inserted = insert_adapter(model, targets(model), Shape(4, 8.0, dora=dora), seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(logits(inserted.model), expected, atol=1e-5)
    assert {each.requires_grad for key, each in model.named_parameters() if "lora_" not in key} == {False}
    assert len(inserted.parameters) == (3 if dora else 2) * len(targets(family(name)))
    assert (logits(moved(inserted).model) - expected).abs().max() > 0.01
    assert weights_sha256(inserted.remove()) == before
    assert [key for key, _ in model.named_modules()] == modules
    assert torch.equal(logits(model), expected)


def test_the_seed_decides_what_is_drawn_and_the_state_of_the_process_does_not() -> None:
    def drawn(seed: int, state: int) -> dict[str, Tensor]:
        torch.manual_seed(state)
        model = tiny_llama()
        inserted = insert_adapter(model, targets(model), Shape(4, 8.0), seed)
        return {name: each.detach() for name, each in inserted.parameters.items()}

    first, second, other = drawn(3, 0), drawn(3, 1), drawn(4, 0)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_it_computes_the_formula(dora: bool, make: Any) -> None:
    """Merged, a weight is W + α/r·B·A; with DoRA m·V/‖V‖ over the inputs, V = W + α/r·B·A."""
    model, original = make(), dict(linears(make()))
    inserted = moved(insert_adapter(model, targets(model), Shape(4, 6.0, dora=dora), seed=0))
    held = {
        name.removeprefix("base_model.model."): each.detach().double() for name, each in inserted.parameters.items()
    }
    beside = logits(inserted.model)
    merged = inserted.merge(lambda layer: layer)
    for name in targets(make()):
        weight_OI = weight_of(original[name]).double()
        expected = weight_OI + 6 / 4 * held[f"{name}.lora_B.weight"] @ held[f"{name}.lora_A.weight"]
        if dora:
            expected *= held[f"{name}.lora_magnitude_vector"][:, None] / expected.norm(dim=1, keepdim=True)
        assert torch.allclose(weight_of(dict(linears(merged))[name]).double(), expected, atol=1e-5)
    assert torch.allclose(logits(merged), beside, atol=1e-4)


def test_written_it_is_what_peft_reads_and_the_same_bytes_every_time(tmp_path: Path) -> None:
    from peft import PeftModel

    for folder, order in (("a", 1), ("b", -1)):
        model = tiny_llama()
        inserted = moved(insert_adapter(model, targets(model)[::order], Shape(4, 8.0), seed=0))
        inserted.write(tmp_path / folder, torch.float32)
    files = [[(tmp_path / folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")]
             for folder in ("a", "b")]  # fmt: skip
    assert files[0] == files[1]
    named = json.loads(files[0][0])["target_modules"]
    assert named == sorted(named)
    again: Any = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "a"))
    assert torch.equal(logits(again), logits(inserted.model))


def test_dropout_acts_on_steps_alone() -> None:
    model = tiny_llama()
    inserted = moved(insert_adapter(model, targets(model), Shape(4, 8.0, dropout=0.5), seed=0))
    assert torch.equal(logits(inserted.model), logits(inserted.model))
    again = tiny_llama()
    without = moved(insert_adapter(again, targets(again), Shape(4, 8.0), seed=0))
    assert torch.equal(logits(inserted.model), logits(without.model))
    torch.manual_seed(0)
    first, second = inserted.model(IDS).logits, inserted.model(IDS).logits
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("end", ["taken_off", "merged"])
def test_a_base_of_bitsandbytes_stays_packed_and_merges_as_floats(end: str) -> None:
    bnb: Any = pytest.importorskip("bitsandbytes", exc_type=ImportError)
    from tests.helpers.library_layers import compressed

    model = compressed(tiny_llama(intermediate_size=128), "bitsandbytes", method="nf4", double_quantize=True).model
    packed, expected = weights_sha256(model), logits(model)
    names = [name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)]
    inserted = insert_adapter(model, names, Shape(4, 8.0), seed=0)
    assert torch.equal(logits(inserted.model), expected)
    optimizer = torch.optim.SGD(inserted.parameters.values(), lr=0.5)
    for _ in range(2):
        functional.cross_entropy(inserted.model(IDS).logits[0, :-1], IDS[0, 1:]).backward()
        optimizer.step()
    beside = logits(inserted.model)
    assert (beside - expected).abs().max() > 0.01
    if end == "taken_off":
        assert weights_sha256(inserted.remove()) == packed
        return

    def plain(layer: nn.Module) -> nn.Module:
        held: Any = layer
        new = nn.Linear(held.in_features, held.out_features, bias=held.bias is not None, device="meta")
        values = bnb.functional.dequantize_4bit(held.weight.data, held.weight.quant_state)
        new.weight, new.bias = nn.Parameter(values, requires_grad=False), held.bias
        return new

    assert torch.allclose(logits(inserted.merge(plain)), beside, atol=1e-4)
    assert type(model.get_submodule(names[0])) is nn.Linear
