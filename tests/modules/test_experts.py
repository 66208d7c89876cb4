"""Stacked experts as matrices, what each is given, and what a step makes of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from harness.backends._common.weights import Override
from harness.backends.dense_and_sparse import DenseAndSparse
from harness.backends.gptq import Gptq
from harness.backends.mixed_precision import MixedPrecision
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError
from harness.modules.decoder_layers import observe_inputs
from harness.modules.experts import (
    ExpertMatrix,
    count_expert_tokens,
    expert_matrices,
    feed_taps,
    find_experts,
    fingerprints,
    format_names,
    routed_tokens,
    routing_mask,
    stack_name,
    stacked_tensor,
)
from harness.modules.grid_check import check_grids
from harness.modules.inspection import module_formats
from harness.modules.linears import linears, matrices, replace_weight, weight_of
from harness.modules.transforms.sensitivity import fisher_diagonal
from harness.modules.transforms.single_changes import (
    apply_change,
    group_by_weight,
    measure_divergences,
    measure_output_errors,
    merge_stacks,
)
from harness.testing.models import random_documents, tiny_tokenizer
from harness.testing.trials import as_variant
from tests.helpers.tiny_models import EXPERTS, family

torch.set_num_threads(1)
STACK = "model.layers.1.mlp.experts.down_proj"


def compressed(name: str, step: Any, documents: Any = ()) -> Any:
    return step.compress(copy.deepcopy(family(name)), tiny_tokenizer(), documents)


def without(model: Any, expert: int) -> Any:
    """The model with a router that never chooses an expert of the last layer."""
    gate = model.model.layers[1].mlp.gate
    forward = gate.forward

    def never(hidden: Tensor) -> Any:
        logits, weights, chosen = forward(hidden)
        return logits, weights, torch.where(chosen == expert, (expert + 1) % 4, chosen)

    gate.forward = never
    return model


@pytest.mark.parametrize("name", EXPERTS)
def test_every_matrix_of_a_stack_is_a_linear_layer_that_shares_its_memory(name: str) -> None:
    model = family(name)
    found = dict(expert_matrices(model))
    assert len(found) == 2 * 2 * 4
    stacks: Any = model.get_submodule("model.layers.1.mlp.experts")
    matrix = found[f"{STACK}[3]"]
    own = stacks.down_proj[3]
    assert torch.equal(weight_of(matrix), own.T if name == "gpt_oss" else own)
    assert (matrix.bias is None) == (name != "gpt_oss")
    replace_weight(matrix, torch.zeros_like(matrix.weight))
    assert not stacks.down_proj[3].any()
    assert stacks.down_proj[2].any()
    assert [n for n, _ in matrices(model)] == [*(n for n, _ in linears(model)), *found]


def test_names_of_matrices_lead_to_their_stack() -> None:
    assert stack_name(f"{STACK}[12]") == STACK
    assert stack_name("model.layers.0.mlp.experts.3.down_proj") == "model.layers.0.mlp.experts.3.down_proj"
    assert format_names(["a", "m.e.down_proj[1]", "m.e.down_proj[4]", "m.e.up_proj[1]"]) == (
        "a, m.e.down_proj[1, 4], m.e.up_proj[1]"
    )


@pytest.mark.parametrize("name", EXPERTS)
def test_the_inputs_of_each_matrix_explain_the_output_of_the_experts(name: str) -> None:
    """From the inputs that are fed to taps, the weights and the routing, the output is computed anew."""
    model: Any = family(name)
    module = model.model.layers[0].mlp.experts
    chance = torch.Generator().manual_seed(3)
    hidden = torch.randn(11, 32, generator=chance)
    chosen = torch.stack([torch.randperm(4, generator=chance)[:2] for _ in range(11)])
    chosen[chosen == 2] = 3  # No token for expert 2; some tokens name expert 3 twice.
    weights = torch.rand(11, 2, generator=chance)
    inputs: dict[tuple[str, int], Tensor] = {}
    keys = [(p, e) for p in ("gate_up_proj", "down_proj") for e in range(4)]
    taps = {key: lambda x, key=key: inputs.update({key: x}) for key in keys}
    feed_taps(module, (hidden,), {"top_k_index": chosen, "top_k_weights": weights}, taps)
    assert {expert for _, expert in inputs} == {0, 1, 3}
    total = torch.zeros_like(hidden)
    for expert in (0, 1, 3):
        rows = torch.nonzero((chosen == expert).any(1))[:, 0]
        assert torch.equal(inputs["gate_up_proj", expert], hidden[rows])
        down = ExpertMatrix(module, "down_proj", expert)
        given = functional.linear(inputs["down_proj", expert], down.weight, down.bias)
        share = (weights * (chosen == expert)).sum(1)[rows]
        total[rows] += given * share[:, None]
    torch.testing.assert_close(total, module(hidden, chosen, weights), rtol=1e-4, atol=1e-5)


def test_a_mask_number_stands_for_no_expert() -> None:
    assert routing_mask(torch.tensor([[0, 3], [4, 1]]), 4).tolist() == [
        [True, False, False, True],
        [False, True, False, False],
    ]


def test_experts_that_get_one_row_for_every_token_count_those_that_are_routed_to_them() -> None:
    model: Any = family("llama4_text")
    (mixture,) = find_experts(model)
    documents = random_documents(3, 20, seed=2)
    scored: list[Tensor] = []
    router = model.model.layers[1].feed_forward.router
    handle = router.register_forward_hook(lambda _m, _a, outputs: scored.append(outputs[1]))
    found = count_expert_tokens(model, documents)[mixture.module]
    handle.remove()
    chosen = torch.cat(scored).argmax(-1)  # One expert a token.
    assert found == tuple(torch.bincount(chosen, minlength=4).tolist())
    assert sum(found) == 60


def test_a_call_that_names_no_experts_otherwise_is_refused() -> None:
    for given in ([torch.ones(7, 8)], [torch.ones(8, 8), torch.ones(8, 4)]):
        with pytest.raises(TypeError, match="without expert indices"):
            routed_tokens(tuple(given), {}, 4)


def test_fingerprints_are_those_of_bytes() -> None:
    rows = torch.randn(20, 8)
    rows[7] = rows[3]
    rows[9] = rows[3].flip(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found = fingerprints(rows.to(dtype)).tolist()
        assert found[7] == found[3]
        assert len(set(found)) == 19


@pytest.mark.parametrize("name", [*EXPERTS, "listed_experts"])
def test_tokens_of_each_expert_are_those_the_router_chose(name: str) -> None:
    model: Any = family(name)
    documents = random_documents(3, 17, seed=4)
    wanted = {f"model.layers.{layer}.mlp.experts": torch.zeros(4, dtype=torch.int64) for layer in range(2)}
    for layer in range(2):
        mlp = model.model.layers[layer].mlp
        router = mlp.router if name == "gpt_oss" else mlp.gate

        def note(_module: Any, _inputs: Any, output: Any, layer: int = layer) -> None:
            wanted[f"model.layers.{layer}.mlp.experts"] += torch.bincount(output[2].flatten(), minlength=4)

        handle = router.register_forward_hook(note)
        for ids in documents:
            model(input_ids=ids[None])
        handle.remove()
    found = count_expert_tokens(model, documents)
    assert found == {path: tuple(counts.tolist()) for path, counts in wanted.items()}
    assert all(sum(counts) == 3 * 17 * 2 for counts in found.values())
    assert [each.stacked for each in find_experts(model)] == [name != "listed_experts"] * 2


def test_a_dense_model_has_no_experts_and_is_not_run() -> None:
    model: Any = family("llama")
    model.forward = None
    assert count_expert_tokens(model, random_documents(1, 5, seed=0)) == {}


@pytest.mark.parametrize("name", EXPERTS)
def test_inspection_lists_stacks_with_all_their_bytes(name: str) -> None:
    model = family(name)
    formats = {found.module: found for found in module_formats(model, {})}
    assert sum(found.parameters for found in formats.values()) == model.num_parameters()
    assert sum(found.stored_bytes for found in formats.values()) == 4 * model.num_parameters()
    stack = formats[STACK]
    bias = 4 * 32 if name == "gpt_oss" else 0
    inner = 64 if name in ("mixtral", "gpt_oss") else 32
    assert (stack.parameters, stack.role, stack.format.name) == (4 * 32 * inner + bias, "linear", "float32")


@pytest.mark.parametrize("name", EXPERTS)
def test_each_expert_is_rounded_by_itself_and_counted(name: str) -> None:
    step = RoundToNearest(bits=4, granularity="channel")
    made = as_variant(step, family(name), ())
    formats = {found.module: found for found in made.identity.modules}
    stack = formats[STACK]
    inner = 64 if name in ("mixtral", "gpt_oss") else 32
    assert (stack.format.name, stack.kernel, stack.backend) == ("int4", "simulated", "round_to_nearest")
    assert stack.bits_per_weight == 4 + 16 / inner
    assert stack.type.endswith("Experts")
    before, after = (stacked_tensor(model, STACK) for model in (family(name), made.model))
    assert before is not None
    assert after is not None
    for was, now in zip(before, after, strict=True):
        scale = was.abs().amax(1, keepdim=True) / 7
        torch.testing.assert_close(now, (was / scale).round() * scale)
    assert not [note for note in made.notes if "full precision" in note.text]


def test_a_stack_that_is_not_on_the_grid_is_found() -> None:
    done = compressed("mixtral", RoundToNearest(bits=4))
    described = {found.module: found for found in done.modules}
    assert check_grids(done.model, described)[STACK] <= 16
    stack: Any = done.model.get_parameter(STACK)
    with torch.no_grad():
        stack[2, 5, 7] *= 1.37
    with pytest.raises(BackendError, match=r"experts\.down_proj is declared as int4"):
        check_grids(done.model, described)


def test_patterns_name_stacks() -> None:
    step = RoundToNearest(bits=8, only=("*.experts.*",), overrides=(Override(modules=("*.down_proj",), bits=3),))
    done = compressed("mixtral", step)
    assert {found.module.rpartition(".")[2]: found.format.name for found in done.modules} == {
        "gate_up_proj": "int8", "down_proj": "int3",
    }  # fmt: skip
    assert len(done.modules) == 4


def test_gptq_of_experts_is_gptq_of_the_same_experts_as_modules() -> None:
    """The stacks of Mixtral fuse gate and up, whose rows GPTQ treats by themselves, so the weights must agree."""
    documents = random_documents(6, 24, seed=5)
    step = Gptq(bits=3, granularity="channel")
    stack, listed = (compressed(name, step, documents).model for name in ("mixtral", "listed_experts"))
    for layer in range(2):
        for expert in range(4):
            parts = listed.get_submodule(f"model.layers.{layer}.mlp.experts.{expert}")
            fused = torch.cat([parts.gate_proj.weight, parts.up_proj.weight])
            gate_up = stacked_tensor(stack, f"model.layers.{layer}.mlp.experts.gate_up_proj")
            down = stacked_tensor(stack, f"model.layers.{layer}.mlp.experts.down_proj")
            assert gate_up is not None
            assert down is not None
            torch.testing.assert_close(gate_up[expert], fused, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(down[expert], parts.down_proj.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("step", [Gptq(bits=4), DenseAndSparse(bits=4)], ids=lambda step: step.kind)
def test_an_expert_without_calibration_tokens_is_named_and_rounded(step: Any) -> None:
    model = without(copy.deepcopy(family("mixtral")), 2)
    done = step.compress(model, tiny_tokenizer(), random_documents(4, 16, seed=6))
    (note,) = [note for note in done.notes if "down_proj[2]" in note.text]
    assert note.level == "warn"
    assert "gate_up_proj[2]" in note.text
    assert "layers.0" not in note.text
    before, after = (stacked_tensor(each, STACK) for each in (family("mixtral"), done.model))
    assert before is not None
    assert after is not None
    assert not torch.equal(before[2], after[2])
    assert (before[2] - after[2]).norm() < 0.2 * before[2].norm()


def test_sensitivity_of_a_stack_is_that_of_finite_differences() -> None:
    model = family("mixtral")
    ids = random_documents(1, 12, seed=7)
    name = "model.layers.1.mlp.experts.gate_up_proj[1]"
    module = dict(expert_matrices(model))[name]
    found = fisher_diagonal(model, {name: module}, ids)[name]
    place = divmod(int(found.argmax()), found.shape[1])

    def loss() -> float:
        logits = model(input_ids=ids[0][None]).logits[0, :-1].double()
        return float(functional.cross_entropy(logits, ids[0][1:], reduction="sum"))

    step, losses = 1e-2, []
    with torch.no_grad():
        for sign in (1, -2):
            module.weight[place] += sign * step
            losses.append(loss())
    gradient = (losses[0] - losses[1]) / (2 * step)
    assert float(found[place]) == pytest.approx(gradient**2, rel=0.02)


def test_a_stack_is_changed_as_a_whole_and_given_back() -> None:
    model = family("mixtral")
    every = merge_stacks(group_by_weight([(n, m) for n, m in expert_matrices(model) if stack_name(n) == STACK]))
    assert [len(unit.modules) for unit in every] == [4]
    before = model.get_parameter(STACK).clone()
    with apply_change(every[0], lambda weight: 2 * weight):
        assert torch.equal(model.get_parameter(STACK), 2 * before)
    assert torch.equal(model.get_parameter(STACK), before)
    documents = random_documents(2, 12, seed=8)
    (cost,) = measure_divergences(model, every, [lambda w: w, lambda w: 0.5 * w], documents).tolist()
    assert cost[0] == pytest.approx(0, abs=1e-9)
    assert cost[1] > 1e-5
    (error,) = measure_output_errors(model, every, [lambda w: 0.5 * w], documents).tolist()
    assert error[0] == pytest.approx(0.25, rel=1e-5)


def test_mixed_precision_gives_a_stack_one_number_of_bits() -> None:
    step = MixedPrecision(bits=(2, 8), target_bits_per_weight=5.0, sensitivity="output_error")
    made = as_variant(step, family("mixtral"), random_documents(2, 12, seed=9))
    stacks = [found for found in made.identity.modules if "experts" in found.module]
    assert len(stacks) == 4
    assert {found.format.name for found in stacks} <= {"int2", "int8"}
    done = [found for found in made.identity.modules if found.backend]
    weights = sum(found.parameters for found in done)
    assert sum(found.bits_per_weight * found.parameters for found in done) / weights <= 5.0


def test_taps_of_modules_and_matrices_are_heard_in_the_order_of_the_data() -> None:
    heard: list[str] = []
    names = [f"model.layers.0.mlp.experts.{p}[{e}]" for e in range(4) for p in ("down_proj", "gate_up_proj")]
    names.append("model.layers.0.self_attn.o_proj")
    taps = {name: lambda _x, name=name: heard.append(name) for name in names}
    observe_inputs(family("mixtral"), taps, random_documents(1, 30, seed=1))
    assert heard[0].endswith("o_proj")
    kinds = [name.rpartition(".")[2].partition("[")[0] for name in heard[1:]]
    assert kinds == sorted(kinds, reverse=True)
    assert set(heard) == set(names)
