"""The KV cache backend on whole models: decoding token by token is the definition of everything."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from harness import plugins
from harness.backends import Backend, Compressed
from harness.backends.kv_cache import KvCache
from harness.data.documents import read_documents
from harness.errors import BackendError
from harness.lockstep.decoder import Decoder, same_logits
from harness.measures.memory import Memory
from harness.models.language_model import TransformersModel
from harness.models.loading import load
from harness.modules.transforms.cached_attention import NAME, SETTINGS
from harness.planning.specs import GateSpec, Plan, RuleSpec, SuiteSpec, VariantSpec
from harness.pocket import MODEL_DIR
from harness.records import CacheFormat, ModelSpec, NumberFormat
from harness.rules.at_most import AtMost
from harness.running.variant import make_variant
from tests.helpers.hybrids import hybrid
from tests.helpers.tiny_models import VOCABULARY, family, save, tiny_gpt2, tiny_llama, tiny_tokenizer

T, PADDING = 26, 7
HELDOUT = "pocket-heldout"
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}


def made(name: str) -> PreTrainedModel:
    """A random model in float64, where rounding to another code by chance does not happen."""
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "llama": lambda: tiny_llama(),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=6)),
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(**GROUPED, sliding_window=6, attn_logit_softcapping=2.0, query_pre_attn_scalar=8)
        ),
        "gpt2": lambda: tiny_gpt2(),
        "opt": lambda: OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32)),
    }
    model: PreTrainedModel = models[name]().eval().double()
    return model


def compress(model: PreTrainedModel, **fields: Any) -> Compressed:
    done = KvCache(**fields).compress(model, tiny_tokenizer(), ())
    assert done.model is model
    return done


def with_cache(model: PreTrainedModel, **fields: Any) -> Any:
    """A copy of the model that compresses its cache."""
    variant = copy.deepcopy(model)
    compress(variant, **fields)
    return variant


def texts() -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions [2, T] of two texts, the first padded on the left."""
    ids = torch.randint(1, VOCABULARY, (2, T), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    return ids * mask, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def placed(model: PreTrainedModel, positions: Tensor) -> dict[str, Tensor]:
    return {} if isinstance(model, OPTForCausalLM) else {"position_ids": positions}


def forward(model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, use_cache: bool) -> Tensor:
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=use_cache, **placed(model, positions)).logits
    return logits


def decode(model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, prompt: int) -> Tensor:
    """Logits of all tokens: ``prompt`` of them at once, then one by one."""
    cache, logits = None, []
    for start, end in [(0, prompt), *((t, t + 1) for t in range(prompt, ids.shape[1]))]:
        output = model(
            input_ids=ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True,
            **placed(model, positions[:, start:end]),
        )  # fmt: skip
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


SCHEMES = {
    "no residual": {"bits": 2, "group_size": 4, "residual": 0},
    "residual": {"key_bits": 2, "value_bits": 3, "group_size": 4, "residual": 5},
    "flushed": {"bits": 3, "group_size": 4, "residual": 8, "flush_keys": True},
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma2", "gpt2", "opt"])
@torch.inference_mode()
def test_a_teacher_forced_text_is_a_decoded_text(name: str, scheme: str) -> None:
    model = made(name)
    variant = with_cache(model, **SCHEMES[scheme])
    ids, mask, positions = texts()
    real = mask.bool()
    plain = forward(model, ids, mask, positions, False)
    whole = forward(variant, ids, mask, positions, False)
    assert (whole - plain)[real].abs().max() > 1e-5, "nothing was quantized"
    assert torch.allclose(whole[real], forward(variant, ids, mask, positions, True)[real], atol=1e-12)
    for prompt in (1, 11):
        assert torch.allclose(decode(variant, ids, mask, positions, prompt)[real], whole[real], atol=1e-10), prompt
    for row, start in ((0, PADDING), (1, 0)):
        alone = variant(input_ids=ids[row : row + 1, start:], use_cache=False).logits[0]
        assert torch.allclose(whole[row, start:], alone, atol=1e-10), "padding changed a text"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_within_the_residual_the_model_is_its_own_eager_self(name: str, dtype: torch.dtype) -> None:
    model = made(name).to(dtype)  # type: ignore[arg-type]
    model.set_attn_implementation("eager")
    variant = with_cache(model, bits=2, residual=T)
    ids, mask, positions = texts()
    whole, expected = (forward(each, ids, mask, positions, True) for each in (variant, model))
    assert same_logits(whole[mask.bool()], expected[mask.bool()])


@torch.inference_mode()
def test_attention_sinks_are_part_of_it() -> None:
    torch.manual_seed(0)
    experts: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6}
    model = GptOssForCausalLM(
        GptOssConfig(**GROUPED, **experts, layer_types=["sliding_attention", "full_attention"], rope_parameters=None)
    ).eval()
    for layer in model.model.layers:
        layer.self_attn.sinks.data.fill_(1.0)
    ids, mask, positions = texts()
    eager = forward(model, ids, mask, positions, True)[mask.bool()]
    exact = forward(with_cache(model, bits=2, residual=T), ids, mask, positions, True)[mask.bool()]
    assert torch.allclose(exact, eager, atol=1e-5)
    variant = with_cache(model, bits=8, group_size=4, residual=0)
    whole = forward(variant, ids, mask, positions, False)[mask.bool()]
    assert torch.allclose(decode(variant, ids, mask, positions, 3)[mask.bool()], whole, atol=1e-3)


@torch.inference_mode()
def test_what_is_generated_is_what_a_decode_loop_writes() -> None:
    for name in ("llama", "gemma2"):
        model = with_cache(made(name), bits=2, group_size=4, residual=3)
        ids, mask, _ = texts()
        written = model.generate(
            input_ids=ids[:, :12], attention_mask=mask[:, :12], max_new_tokens=10, min_new_tokens=10, do_sample=False
        )
        loop, loop_mask = ids[:, :12], mask[:, :12]
        for _ in range(10):
            where = (loop_mask.cumsum(-1) - 1).clamp(min=0)
            following = forward(model, loop, loop_mask, where, False)[:, -1:].argmax(-1)
            loop = torch.cat([loop, following], dim=1)
            loop_mask = torch.cat([loop_mask, torch.ones_like(following)], dim=1)
        assert torch.equal(written, loop)
        cached, uncached = (
            model.generate(
                input_ids=loop[:, :12], attention_mask=loop_mask[:, :12], max_new_tokens=8, num_beams=3,
                do_sample=False, use_cache=use_cache,
            )
            for use_cache in (True, False)
        )  # fmt: skip
        assert torch.equal(cached, uncached)


@torch.inference_mode()
def test_copies_keep_their_settings_and_the_original_stays_untouched() -> None:
    model = made("llama")
    ids, mask, positions = texts()
    before, attention = forward(model, ids, mask, positions, True), model.config._attn_implementation
    coarse = with_cache(model, bits=2, group_size=4, residual=0)
    fine = with_cache(model, bits=8, group_size=4, residual=0)
    expected = {id(each): forward(each, ids, mask, positions, True) for each in (coarse, fine)}
    again = {id(each): forward(copy.deepcopy(each), ids, mask, positions, True) for each in (coarse, fine)}
    for key, logits in expected.items():
        assert torch.equal(again[key], logits)
    real = mask.bool()
    assert (expected[id(fine)] - before)[real].abs().max() < 0.1 * (expected[id(coarse)] - before)[real].abs().max()
    assert torch.equal(forward(model, ids, mask, positions, True), before)
    assert model.config._attn_implementation == attention
    assert not any(hasattr(module, SETTINGS) or module._forward_pre_hooks for module in model.modules())
    for dictionary in (coarse.state_dict(), fine.state_dict()):
        assert dictionary.keys() == model.state_dict().keys()


@torch.inference_mode()
def test_some_layers_can_be_left_alone() -> None:
    model = made("llama")
    ids, mask, positions = texts()
    scheme = {"bits": 2, "group_size": 4, "residual": 0}
    both, first, none = (with_cache(model, **scheme, skip_layers=skipped) for skipped in ((), (1,), (0, 1)))
    logits = [forward(each, ids, mask, positions, False)[mask.bool()] for each in (both, first, none, model)]
    assert torch.allclose(logits[2], logits[3], atol=1e-6)
    assert not torch.allclose(logits[1], logits[3], atol=1e-5)
    assert not torch.allclose(logits[0], logits[1], atol=1e-5)
    with pytest.raises(BackendError, match=r"skip_layers has 5.*\[0, 1\]"):
        compress(made("llama"), bits=4, skip_layers=(1, 5))


@torch.inference_mode()
def test_the_shared_pass_can_take_the_model_apart() -> None:
    model = with_cache(made("llama").float(), bits=2, group_size=4, residual=3)
    ids = texts()[0][1:]
    decoder = Decoder("tiny", TransformersModel(model))
    plain = decoder.prepare(ids)
    assert decoder.whole == ""
    assert torch.equal(plain, model(input_ids=ids).logits[0])
    short = ids[:, :15]
    both = torch.cat([ids, functional.pad(short, (0, T - 15))])
    mask = torch.ones_like(both)
    mask[1, 15:] = 0
    states = decoder.states(both, mask).reshape(2, T, -1)
    assert torch.allclose(states[0], decoder.states(ids, None), atol=1e-5)
    assert torch.allclose(states[1, :15], decoder.states(short, None), atol=1e-5)


# --- the record ----------------------------------------------------------------------------------------------


def test_the_format_says_what_was_done() -> None:
    found = compress(tiny_llama(), bits=4).cache
    assert found == CacheFormat(
        keys=NumberFormat(type="int", bits=4, symmetric=False, granularity="channel", group_size=32, scales="float"),
        values=NumberFormat(type="int", bits=4, symmetric=False, granularity="token", group_size=32, scales="float"),
        bits_per_value=(4 + 32 / 32 + 4 + 32 / 16) / 2,  # heads have 16 channels
        residual=32,
        kernel="simulated",
        backend="kv_cache",
    )
    for fields, keys, values, bits in (
        ({"key_bits": 8, "symmetric": True, "keys": "token", "group_size": None},
         "int8 per token and head", "float32", (8 + 1 + 32) / 2),
        ({"bits": 2, "skip_layers": (1,)}, "asymmetric int2 per channel in groups of 32 tokens",
         "asymmetric int2 per token in groups of 32 channels", (3 + 4 + 32 + 32) / 4),
        ({"format": "fp8_e4m3", "keys": "unscaled", "values": "unscaled"},
         "fp8_e4m3 without scales", "fp8_e4m3 without scales", 8.0),
    ):  # fmt: skip
        cache = compress(tiny_llama(), **fields).cache
        assert cache is not None
        assert (str(cache.keys), str(cache.values)) == (keys, values)
        assert cache.skipped_layers == fields.get("skip_layers", ())
        assert cache.bits_per_value == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bits": 1},
        {"bits": 9},
        {"bits": 4, "format": "fp8_e4m3"},
        {"format": "fp8_e4m3", "symmetric": True},
        {"bits": 4, "keys": "unscaled"},
        {"bits": 4, "group_size": None},
        {"bits": 4, "residual": -1},
        {"bits": 4, "flush_keys": True, "residual": 40},
        {"bits": 4, "flush_keys": True, "residual": 0},
        {"bits": 4, "groups": 32},
    ],
)
def test_fields_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KvCache(**fields)


def test_settings_survive_a_round_trip_and_it_is_found_by_its_name() -> None:
    for step in (KvCache(bits=4), KvCache(key_bits=2, residual=64, flush_keys=True, skip_layers=(0,))):
        assert KvCache.model_validate_json(json.dumps(step.settings())) == step
    assert plugins.load(Backend, "kv_cache") is KvCache


def plan_of(folder: Path, **fields: Any) -> Plan:
    rule = AtMost(metric="memory.weight_bytes", limit=1.0, why="any")
    return Plan(
        name="tiny",
        source="variant.yaml",
        reference=ModelSpec(model=str(folder)),
        variant=VariantSpec(compress=(KvCache(**fields),)),
        suites=(SuiteSpec(name="s", source="s.yaml", measures=(Memory(),)),),
        gates=(GateSpec(name="g", source="g.yaml", rules=(RuleSpec(rule=rule, where="g.yaml:1"),)),),
    )


def test_a_variant_says_what_it_is_and_is_not_its_reference(tmp_path: Path) -> None:
    folder = save(tiny_llama(), tmp_path / "model")
    reference = load(ModelSpec(model=str(folder)), "reference")
    first, second = (make_variant(plan_of(folder, bits=4), reference, ()) for _ in range(2))
    assert first.identity == second.identity
    assert first.identity.attention == NAME
    assert first.identity.cache is not None
    assert first.identity.simulated
    assert not first.identity.same_as(reference.identity)
    same = ("weights_sha256", "config_sha256", "tokenizer_sha256")
    assert [getattr(first.identity, name) for name in same] == [getattr(reference.identity, name) for name in same]
    assert reference.model.config._attn_implementation == reference.identity.attention == "sdpa"
    assert [note.topic for note in first.notes] == ["attention"]


# --- what is refused ------------------------------------------------------------------------------------------


NO_INTERFACE = r"{0}Attention \(layer 0 of {0}ForCausalLM\) does not use transformers' attention interface"
LATENTS = (
    r"DeepseekV3Attention \(layer 0 of DeepseekV3ForCausalLM\) caches latents, 16 values of a token, "
    r"that it expands to 4 heads of 12 afterwards \(multi-head latent attention\)"
)


@pytest.mark.parametrize(("kind", "message"), [
    ("falcon", NO_INTERFACE.format("Falcon")),
    ("bloom", NO_INTERFACE.format("Bloom")),
    ("gptj", NO_INTERFACE.format("GPTJ")),
    ("codegen", NO_INTERFACE.format("CodeGen")),
    ("mpt", NO_INTERFACE.format("Mpt")),
    ("deepseek_v3", LATENTS),
    ("mamba", "MambaForCausalLM caches no keys and values; remove the step"),
    ("rwkv", "RwkvForCausalLM caches no keys and values; remove the step"),
])  # fmt: skip
def test_models_whose_cache_cannot_be_simulated_are_refused_and_left_alone(
    kind: str, message: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = family("falcon") if kind == "falcon" else hybrid(kind)
    before = model.config._attn_implementation
    with pytest.raises(BackendError, match=message):
        compress(model, bits=4)
    assert model.config._attn_implementation == before
    assert not [record for record in caplog.records if "attention implementation" in record.getMessage()]


def test_attention_that_does_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama")
    module = model.model.layers[0].self_attn
    original = type(module).forward

    def louder(self: Any, *arguments: Any, **named: Any) -> Any:
        out, weights = original(self, *arguments, **named)
        return (out * (1.5 if self.config._attn_implementation == "eager" else 1.0)), weights

    monkeypatch.setattr(type(module), "forward", louder)
    with pytest.raises(BackendError, match="in full precision the logits of LlamaForCausalLM differ by"):
        compress(model, bits=4)
    assert model.config._attn_implementation == "sdpa"


def test_attention_to_other_tensors_than_the_cached_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    update = DynamicCache.update
    monkeypatch.setattr(DynamicCache, "update", lambda *arguments: tuple(x + 1 for x in update(*arguments)))
    with pytest.raises(BackendError, match=r"LlamaAttention \(layer 0 of LlamaForCausalLM\) attends to tensors other"):
        compress(made("llama"), bits=4)


@torch.inference_mode()
def test_a_second_step_and_foreign_caches_are_refused() -> None:
    original = made("llama")
    model = with_cache(original, bits=4)
    with pytest.raises(BackendError, match="has a simulated cache already"):
        compress(model, bits=4)
    ids = texts()[0]
    filled = original(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(BackendError, match="LlamaAttention received a DynamicLayer"):
        model(input_ids=ids[:, :1], past_key_values=filled, use_cache=True)
    with pytest.raises(BackendError, match="received a StaticLayer"):
        model.generate(input_ids=ids, max_new_tokens=2, cache_implementation="static")


# --- real models ----------------------------------------------------------------------------------------------


def divergence(model: PreTrainedModel, texts: list[Tensor], **fields: Any) -> float:
    """Mean KL of the variant in nats a token."""
    variant, total, tokens = with_cache(model, **fields), 0.0, 0
    for ids in texts:
        ours, theirs = (functional.log_softmax(each(input_ids=ids[None]).logits[0], -1) for each in (model, variant))
        total += float((ours.exp() * (ours - theirs)).sum())
        tokens += len(ids)
    return total / tokens


def real(folder: Path) -> tuple[PreTrainedModel, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def pocket() -> tuple[PreTrainedModel, Any, list[Tensor]]:
    model, tokenizer = real(MODEL_DIR)
    return model, tokenizer, [torch.tensor(tokenizer(text.text).input_ids) for text in read_documents(HELDOUT, 3)]


@torch.inference_mode()
def test_fewer_bits_are_worse_and_outlier_keys_want_scales_per_channel(
    pocket: tuple[PreTrainedModel, Any, list[Tensor]],
) -> None:
    model, _, documents = pocket
    channel, token = (
        {bits: divergence(model, documents, bits=bits, keys=keys, residual=0) for bits in (8, 4, 2)}
        for keys in ("channel", "token")
    )
    for found in (channel, token):
        assert found[8] < 1e-3
        assert 5 * found[8] < found[4] < found[2]
    assert 3 * channel[4] < token[4]
    longer = divergence(model, documents, bits=2, residual=64)
    assert longer < channel[2]


@torch.inference_mode()
def test_fewer_bits_are_worse_on_stories260k(shared_data: Path) -> None:
    model, tokenizer = real(shared_data / "models/stories260K-hf")
    lines = (shared_data / "corpora/tinystories_valid_A_297.jsonl").read_text().splitlines()[:2]
    stories = [torch.tensor(tokenizer(json.loads(line)["text"]).input_ids[:200]) for line in lines]
    found = [divergence(model, stories, bits=bits, residual=0) for bits in (8, 4, 3, 2)]
    assert found == sorted(found)
    assert found[0] < 1e-4
    assert found[-1] > 0.05


@torch.inference_mode()
def test_lm_eval_scores_and_writes_with_the_simulated_cache(pocket: tuple[PreTrainedModel, Any, list[Tensor]]) -> None:
    model, tokenizer, documents = pocket
    variant = with_cache(model, bits=2, residual=0, group_size=8)
    scorer = HFLM(pretrained=variant, tokenizer=tokenizer, batch_size=2, max_length=512, device="cpu")
    texts = [tokenizer.decode(ids[1:41]) for ids in documents[:2]]
    pairs = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    for pair, (found, _) in zip(pairs, scorer.loglikelihood(asked), strict=True):
        prompt, answer = scorer._encode_pair(*pair)
        ids = torch.tensor([[*prompt, *answer]])
        predicted = functional.log_softmax(variant(input_ids=ids).logits[0, len(prompt) - 1 : -1], -1)
        assert found == pytest.approx(float(predicted.gather(1, ids[0, len(prompt) :, None]).sum()), rel=1e-4)
        plain = functional.log_softmax(model(input_ids=ids).logits[0, len(prompt) - 1 : -1], -1)
        assert abs(found - float(plain.gather(1, ids[0, len(prompt) :, None]).sum())) > 1e-3
    asked = [
        Instance("generate_until", {}, (prompt, {"until": ["never"], "max_gen_toks": 6}), index)
        for index, (prompt, _) in enumerate(pairs)
    ]
    assert len(scorer.generate_until(asked)) == 2
