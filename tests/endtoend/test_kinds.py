"""Kinds of published failures, two or more variations of each: what the rules of ``ship`` say of a whole check."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.helpers.checked_folders import (
    SIZES,
    Checked,
    change_config,
    change_tensors,
    check_folders,
    copy_pocket,
    pack_gptq,
    save,
    with_tower,
)
from tests.helpers.folders import CHATML, SETTINGS, TOKENIZER, edit

GENERATION = "generation_config.json"
FAMILIES = ("coverage.", "comparability.")
Make = Callable[[Path, Path], None]


@dataclass(frozen=True)
class Case:
    """A pair of folders and what a check of it must say.

    code, failure: exit code and class of failure. metric: a rule that must not pass. comparable: of the comparison.
    said: what the terminal shows. trusted: whether the variant file does not excuse a weak reference.
    """

    kind: str
    make: Make
    code: int
    failure: str | None = None
    metric: str = ""
    comparable: str = ""
    said: str = ""
    trusted: bool = False
    quick: bool = False


CASES: list[Case] = []


def case(kind: str, code: int, failure: str | None = None, **more: Any) -> Callable[[Make], Make]:
    """Enter a pair into the table."""

    def enter(make: Make) -> Make:
        CASES.append(Case(kind, make, code, failure, **more))
        return make

    return enter


def pocket(*folders: Path) -> None:
    for folder in folders:
        copy_pocket(folder)


def drop(held: dict[str, Tensor], part: str) -> None:
    """Take every tensor out whose name holds ``part``."""
    for name in [name for name in held if part in name]:
        del held[name]


def put(name: str, place: Any, value: float) -> Callable[[dict[str, Tensor]], None]:
    """A change of one tensor at a place."""

    def change(held: dict[str, Tensor]) -> None:
        held[name] = held[name].clone()
        held[name][place] = value

    return change


def gptq(ref: Path, var: Path) -> None:
    pocket(ref, var)
    pack_gptq(var)


def sparse(kind: str, ref: Path, var: Path) -> Any:
    """A model with experts that no token reaches, in both folders; returns it."""
    routed: dict[str, Any] = {"num_experts_per_tok": 1, "num_local_experts": 4, "num_experts": 4}
    sizes = SIZES | {"moe_intermediate_size": 32, "head_dim": 16, "norm_topk_prob": True}
    model: Any = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes, **routed))
    for layer in model.model.layers:
        gate = layer.mlp.gate.weight.data
        gate[1], gate[2:] = -gate[0], 0
    for side in (ref, var):
        save(model.eval(), side)
    return model


def damage_expert(kind: str, part: str, place: Any, value: float) -> Make:
    def make(ref: Path, var: Path) -> None:
        model = sparse(kind, ref, var)
        getattr(model.model.layers[1].mlp.experts, part).data[place] = value
        save(model, var)

    return make


case("non-finite, never reached", 1, "numerics", metric="coverage.non_finite", quick=True)(
    damage_expert("Mixtral", "gate_up_proj", (2, 5, 7), float("-inf"))
)
case("non-finite, never reached", 1, "numerics", metric="coverage.non_finite")(
    damage_expert("Qwen3Moe", "down_proj", (3, 0, 0), float("nan"))
)
case("experts no token reached", 1, "comparability", metric="coverage.untouched_changed", quick=True)(
    damage_expert("Mixtral", "down_proj", 3, 0.0)
)
case("experts no token reached", 1, "comparability", metric="coverage.untouched_changed")(
    damage_expert("Qwen3Moe", "gate_up_proj", (2, 1, 1), 1e4)
)


def damage_rows(place: Any, value: float) -> Make:
    def make(ref: Path, var: Path) -> None:
        copy_pocket(ref)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(ref, dtype=torch.float32)
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        save(model, ref)
        model.model.embed_tokens.weight.data[place] = value
        save(model, var)

    return make


case("rows never looked up", 1, "numerics", metric="coverage.non_finite")(damage_rows((1405, 3), float("inf")))
case("rows never looked up", 1, "comparability", metric="coverage.untouched_changed")(
    damage_rows(slice(1400, 1410), 1e30)
)


def damage_tower(change: Callable[[dict[str, Tensor], str], None], part: str) -> Make:
    def make(ref: Path, var: Path) -> None:
        model = with_tower()
        for side in (ref, var):
            save(model, side)

        def damage(held: dict[str, Tensor]) -> None:
            change(held, next(name for name in sorted(held) if "vision" in name and part in name))

        change_tensors(var, damage)

    return make


case("tower", 1, "comparability", metric="coverage.untouched_changed", quick=True)(
    damage_tower(lambda held, name: held.update({name: held[name].flip(0)}), "position_embedding")
)
case("tower", 1, "comparability", metric="coverage.untouched_changed")(
    damage_tower(lambda held, name: held.update({name: held[name] + 0.5}), "fc2.bias")
)


def edit_both(path: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Make:
    def make(ref: Path, var: Path) -> None:
        pocket(ref, var)
        edit(ref / path, **ours)
        edit(var / path, **theirs)

    return make


def exchange_template(ours: str, theirs: str) -> Make:
    return edit_both(SETTINGS, {"chat_template": ours}, {"chat_template": theirs})


AT_ONCE = {"comparable": "no", "metric": "comparability.at_once"}
BEYOND = {"comparable": "partly", "metric": "comparability.beyond_inputs"}
TOOLS = "{% for t in tools or [] %}{{ t.function.name }}\n{% endfor %}" + CHATML
case("chat template", 1, "comparability", quick=True, **AT_ONCE)(exchange_template(TOOLS, CHATML))
case("chat template", 1, "comparability", **AT_ONCE)(
    exchange_template(CHATML, CHATML.replace("assistant\n", "assistant\n<think>\n"))
)
case("chat template", 1, "comparability", **AT_ONCE)(
    exchange_template(CHATML, CHATML.replace("<|im_end|>\n{% endfor", "<|im_end|>{% endfor"))
)
case("stop tokens", 1, "comparability", quick=True, **AT_ONCE)(
    edit_both(GENERATION, {"eos_token_id": [1, 40]}, {"eos_token_id": 40})
)


@case("stop tokens", 1, "comparability", **AT_ONCE)
def exchange_stop_of_config(ref: Path, var: Path) -> None:
    pocket(ref, var)
    for folder in (ref, var):
        (folder / GENERATION).unlink()
    change_config(var, eos_token_id=40)


case("sampling defaults", 1, "comparability", **AT_ONCE)(
    edit_both(GENERATION, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"do_sample": False})
)
case("sampling defaults", 1, "comparability", **AT_ONCE)(edit_both(GENERATION, {}, {"forced_bos_token_id": 9}))

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1000.0, "original_max_position_embeddings": 512}
case("configuration beyond the length", 0, **BEYOND, quick=True)(
    edit_both("config.json", {}, {"max_position_embeddings": 2048})
)
case("configuration beyond the length", 1, "comparability", **AT_ONCE)(
    edit_both("config.json", {}, {"max_position_embeddings": 300})
)
LINEAR = {"rope_type": "linear", "factor": 1.01, "rope_theta": 1000.0}
case("rope", 1, "comparability", **AT_ONCE)(edit_both("config.json", {}, {"rope_parameters": LINEAR}))
case("rope", 1, **AT_ONCE)(edit_both("config.json", {}, {"rope_parameters": YARN}))


def windows(ours: int | None, theirs: int | None) -> Make:
    kind = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    return edit_both("config.json", kind | {"sliding_window": ours}, kind | {"sliding_window": theirs})


case("sliding window", 1, "comparability", **AT_ONCE)(windows(256, None))
case("sliding window", 0, **BEYOND)(windows(None, 1024))
case("keys nobody reads", 0, said="residual_multiplier", **BEYOND)(
    edit_both("config.json", {}, {"residual_multiplier": 0.22})
)
case("keys nobody reads", 0, said="final_logit_softcapping")(
    edit_both("config.json", {"final_logit_softcapping": 30.0}, {"final_logit_softcapping": 30.0})
)


def change_pipeline(**parts: Any) -> Make:
    return edit_both(TOKENIZER, {}, parts)


case("tokenizer, rare texts", 0, **BEYOND)(change_pipeline(normalizer={"type": "NFKC"}))
case("tokenizer, rare texts", 0, **BEYOND)(
    change_pipeline(normalizer={"type": "Replace", "pattern": {"String": "\u00a0"}, "content": " "})
)
case("tokenizer, common texts", 2, "comparability", quick=True, **AT_ONCE)(
    change_pipeline(normalizer={"type": "Lowercase"})
)


@case("tokenizer, common texts", 2, "comparability", **AT_ONCE)
def lose_merges(ref: Path, var: Path) -> None:
    pocket(ref, var)
    edit(var / TOKENIZER, lambda held: held["model"].update(merges=held["model"]["merges"][:300]))


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
case("tokenizer, decoder", 1, "comparability", **AT_ONCE)(
    change_pipeline(decoder={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True})
)
case("tokenizer, decoder", 1, "comparability", **AT_ONCE)(
    change_pipeline(
        decoder={
            "type": "Sequence",
            "decoders": [BYTES, {"type": "Replace", "pattern": {"String": "."}, "content": ""}],
        }
    )
)


def name_class(name: str, both: bool) -> Make:
    def make(ref: Path, var: Path) -> None:
        pocket(ref, var)
        for folder in (ref, var) if both else (var,):
            edit(folder / SETTINGS, lambda held: held.pop("backend", None), tokenizer_class=name)

    return make


case("tokenizer class", 2, "model_unsupported", said="T5Tokenizer", quick=True)(name_class("T5Tokenizer", both=True))
case("tokenizer class", 2, "model_unsupported", said="XLMRobertaTokenizer")(
    name_class("XLMRobertaTokenizer", both=False)
)


def keep_plain(*parts: str) -> Make:
    def make(ref: Path, var: Path) -> None:
        pocket(ref, var)
        pack_gptq(var, lambda name: not any(part in name for part in parts))

    return make


case("layers never quantized", 1, "quantization_coverage", metric="coverage.unquantized", quick=True)(
    keep_plain("layers.3.self_attn.o_proj")
)
case("layers never quantized", 1, "quantization_coverage", metric="coverage.unquantized")(
    keep_plain("self_attn", "layers.0.mlp")
)


def damage_gptq(change: Callable[[dict[str, Tensor]], None], **said: Any) -> Make:
    def make(ref: Path, var: Path) -> None:
        gptq(ref, var)
        change_tensors(var, change)
        if said:
            held = json.loads((var / "config.json").read_text())["quantization_config"]
            change_config(var, quantization_config=held | said)

    return make


UP = "model.layers.2.mlp.up_proj"
case("scales", 1, "numerics", said=UP, quick=True)(damage_gptq(put(f"{UP}.scales", (0, 0), float("-inf"))))
case("scales", 2, "model_unsupported", said="all weights of")(
    damage_gptq(lambda held: held.update({k: v * 0 for k, v in held.items() if k.endswith("v_proj.scales")}))
)
case("scales", 2, "model_unsupported", said=UP)(damage_gptq(lambda held: drop(held, f"{UP}.scales")))
case("config states another format", 2, quick=True)(damage_gptq(lambda held: None, bits=2))
case("config states another format", 2)(damage_gptq(lambda held: None, quant_method="awq"))


@case("config states another format", 2)
def lose_quantization_config(ref: Path, var: Path) -> None:
    gptq(ref, var)
    edit(var / "config.json", lambda held: held.pop("quantization_config"))


def add_cache_scales(value: float) -> Make:
    def make(ref: Path, var: Path) -> None:
        pocket(ref, var)
        scales = {f"model.layers.{n}.self_attn.{part}_scale": torch.tensor(value) for n in range(4) for part in "kv"}
        change_tensors(var, lambda held: held.update(scales))

    return make


case("scales of the KV cache", 1, "numerics", said="k_scale")(add_cache_scales(float("inf")))
case("scales of the KV cache", 0, said="scales of an 8-bit KV cache")(add_cache_scales(0.5))


def spoil(change: Callable[[Tensor], Tensor], name: str) -> Make:
    def make(ref: Path, var: Path) -> None:
        for folder in (ref, var):
            copy_pocket(folder)
            change_tensors(folder, lambda held: held.update({name: change(held[name])}))

    return make


CHANCE = "no better than chance"
case("weak reference", 2, quick=True, trusted=True, said=CHANCE)(spoil(lambda held: -held, "model.norm.weight"))
case("weak reference", 2, trusted=True, said=CHANCE)(
    spoil(lambda held: held[:1].expand_as(held), "model.embed_tokens.weight")
)


@case("blocks in another order", 1, "quality", metric="divergence.kl_mean")
def swap_blocks(ref: Path, var: Path) -> None:
    pocket(ref, var)

    def swap(held: dict[str, Tensor]) -> None:
        for name in [name for name in held if ".layers.0." in name]:
            other = name.replace(".layers.0.", ".layers.3.")
            held[name], held[other] = held[other], held[name]

    change_tensors(var, swap)


@case("blocks in another order", 1, "quality", metric="divergence.kl_mean")
def lose_block(ref: Path, var: Path) -> None:
    pocket(ref, var)
    change_tensors(var, lambda held: drop(held, ".layers.3."))
    change_config(var, num_hidden_layers=3, layer_types=None)


@case("tokens without a row", 2, "model_unsupported", quick=True)
def shrink_embedding(ref: Path, var: Path) -> None:
    pocket(ref, var)
    change_config(var, vocab_size=1500)
    change_tensors(
        var, lambda held: held.update({"model.embed_tokens.weight": held["model.embed_tokens.weight"][:1500]})
    )


@case("tokens without a row", 2, "model_unsupported")
def leave_a_gap(ref: Path, var: Path) -> None:
    pocket(ref, var)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    edit(var / TOKENIZER, lambda held: held["added_tokens"].append({"id": 1700, "content": "<gap>", **flags}))
    edit(var / TOKENIZER, lambda held: held["model"]["vocab"].update({"<gap>": 1700}))


def soft_cap(ours: float | None, theirs: float | None) -> Make:
    def make(ref: Path, var: Path) -> None:
        fixed: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 16, "initializer_range": 1.0}
        model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SIZES, **fixed))
        for folder, cap in ((ref, ours), (var, theirs)):
            change_config(save(model, folder), attn_logit_softcapping=cap)

    return make


EAGER = "attention is eager, because sdpa ignores attn_logit_softcapping"
case("attention options", 0, said=EAGER)(soft_cap(1.0, None))
case("attention options", 0, said=EAGER)(soft_cap(50.0, 0.5))


def name_case(each: Case) -> str:
    return each.kind.replace(" ", "_")


PARAMETERS = [
    pytest.param(each, id=f"{name_case(each)}-{n}", marks=() if each.quick else pytest.mark.slow)
    for n, each in enumerate(CASES)
]


def find_failure(base: Path, found: Checked) -> str | None:
    path = base / "runs" / "v" / ("run.json" if found.run else "failure.json")
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content.get("failure")


@pytest.mark.parametrize("each", PARAMETERS)
def test_a_variation_of_a_published_failure_does_not_pass_in_silence(
    each: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    each.make(tmp_path / "ref", tmp_path / "var")
    found = check_folders(tmp_path, families=FAMILIES, excused=not each.trusted)
    assert found.code == each.code, found.output
    assert each.said in found.output + " ".join(note["text"] for note in found.run.get("notes", ()))
    if each.failure:
        assert find_failure(tmp_path, found) == each.failure
    if each.metric:
        assert each.metric in found.failed("block" if each.code else "warn")
    if each.comparable:
        assert found.run["comparison"]["comparable"] == each.comparable


def test_every_kind_has_two_variations() -> None:
    kinds = [each.kind for each in CASES]
    assert all(kinds.count(kind) >= 2 for kind in kinds)
