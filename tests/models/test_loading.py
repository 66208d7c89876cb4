"""Loading: every way in which a model may not be what was asked for is an error that names it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.backends import Backend, Compressed
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError, MissingDependencyError, ModelError
from harness.measures.memory import Memory
from harness.models import checkpoint, sources
from harness.models.identity import config_sha256, identify, weights_sha256
from harness.models.loaded import LoadedModel, verify_unchanged
from harness.models.loading import load
from harness.planning.specs import GateSpec, Plan, RuleSpec, SuiteSpec, VariantSpec
from harness.records import ModelSpec, ModuleFormat, NumberFormat
from harness.rules.at_most import AtMost
from harness.running.variant import make_variant
from tests.helpers.tiny_models import save, tiny_gpt2, tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_llama(), tmp_path / "model")


def spec(folder: Path | str, **changes: Any) -> ModelSpec:
    return ModelSpec(model=str(folder), **changes)


def plan_of(folder: Path, variant: VariantSpec, **reference: Any) -> Plan:
    rule = AtMost(metric="memory.weight_bytes", limit=1.0, why="any")
    return Plan(
        name="tiny-w4",
        source="variant.yaml",
        reference=spec(folder, **reference),
        variant=variant,
        suites=(SuiteSpec(name="s", source="s.yaml", measures=(Memory(),)),),
        gates=(GateSpec(name="g", source="g.yaml", rules=(RuleSpec(rule=rule, where="g.yaml:1"),)),),
    )


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# --- what a good folder becomes -----------------------------------------------------------------------------


def test_a_loaded_model_is_frozen_in_eval_mode_and_computes_what_was_saved(folder: Path) -> None:
    loaded = load(spec(folder), "reference")
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    ids = torch.tensor([[0, 5, 9, 2]])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, tiny_llama()(ids).logits)
    assert loaded.notes == ()


def test_the_identity_says_what_was_loaded(folder: Path) -> None:
    identity = load(spec(folder), "reference").identity
    original = tiny_llama()
    assert identity.architecture == "LlamaForCausalLM"
    assert (identity.dtype, identity.device, identity.attention) == ("float32", "cpu", "sdpa")
    assert identity.parameters == original.num_parameters()
    assert sum(module.parameters for module in identity.modules) == original.num_parameters()
    assert sum(module.stored_bytes for module in identity.modules) == 4 * original.num_parameters()
    head = next(module for module in identity.modules if module.module == "lm_head")
    assert (head.type, head.parameters, head.stored_bytes) == ("Linear (shared)", 0, 0)
    assert not identity.simulated


def test_hashes_do_not_depend_on_the_folder_and_see_one_changed_bit(tmp_path: Path) -> None:
    first = load(spec(save(tiny_llama(), tmp_path / "a")), "reference").identity
    second = load(spec(save(tiny_llama(), tmp_path / "b")), "variant").identity
    assert first.same_as(second)

    def flip(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"].view(torch.int32)[3] ^= 1

    change_weights(tmp_path / "b", flip)
    third = load(spec(tmp_path / "b"), "variant").identity
    assert third.weights_sha256 != first.weights_sha256
    assert (third.config_sha256, third.tokenizer_sha256) == (first.config_sha256, first.tokenizer_sha256)


def test_config_and_tokenizer_have_hashes_of_their_own(folder: Path) -> None:
    before = load(spec(folder), "reference")
    change_config(folder, rms_norm_eps=0.01, transformers_version="0.0.1", _name_or_path="elsewhere")
    changed = load(spec(folder), "reference").identity
    assert changed.config_sha256 != before.identity.config_sha256
    change_config(folder, rms_norm_eps=1e-6)
    assert load(spec(folder), "reference").identity.config_sha256 == before.identity.config_sha256

    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"A": 34', '"Ä": 34'))
    assert load(spec(folder), "reference").identity.tokenizer_sha256 != before.identity.tokenizer_sha256


def test_the_version_of_transformers_is_no_part_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_llama().config
    before = config_sha256(config)
    monkeypatch.setattr("transformers.configuration_utils.__version__", "99.0.0")
    assert config.to_dict()["transformers_version"] == "99.0.0"
    assert config_sha256(config) == before


def test_using_the_tokenizer_leaves_its_hash_alone(folder: Path) -> None:
    loaded = load(spec(folder), "reference")
    loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    before = identify("x", loaded.model, loaded.tokenizer, "s", None, "float32", "cpu", ()).tokenizer_sha256
    loaded.tokenizer(["ab", "c"], padding=True, truncation=True, max_length=8)
    after = identify("x", loaded.model, loaded.tokenizer, "s", None, "float32", "cpu", ()).tokenizer_sha256
    assert before == after


def test_weights_stored_in_another_type_are_converted_as_declared_and_noted(tmp_path: Path) -> None:
    folder = save(tiny_llama().to(torch.bfloat16), tmp_path / "half")  # type: ignore[arg-type]
    loaded = load(spec(folder, dtype="float32"), "reference")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert [note.topic for note in loaded.notes] == ["dtype"]
    assert "bfloat16" in loaded.notes[0].text
    assert load(spec(folder, dtype="bfloat16"), "reference").notes == ()


def test_weights_that_are_not_finite_are_noted_and_left_to_the_measures(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    notes = load(spec(folder), "variant").notes
    assert [note.topic for note in notes] == ["non-finite weights"]
    assert "model.norm.weight" in notes[0].text


def test_the_declared_attention_is_the_one_in_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(spec(folder, attention="eager"), "reference").identity.attention == "eager"
    real = checkpoint._load_model

    def other_attention(path: Path, wanted: ModelSpec, loader: Any) -> PreTrainedModel:
        return real(path, wanted.model_copy(update={"attention": "eager"}), loader)

    monkeypatch.setattr(checkpoint, "_load_model", other_attention)
    with pytest.raises(ModelError, match="attention in use is eager, but declared is sdpa"):
        load(spec(folder, attention="sdpa"), "reference")


def test_loading_says_nothing_on_the_terminal(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(spec(folder), "reference")
    assert capfd.readouterr() == ("", "")


# --- fault 11: not there ------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["./nothing/here", "/no/such/folder", "..", "a/b/c"])
def test_a_missing_path_is_refused(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no such folder|is not a model folder"):
        load(spec(missing), "reference")


def test_an_unreachable_hub_is_an_error_before_any_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"nobody/nothing@main: no such folder here.*hub cannot be reached"):
        load(spec("nobody/nothing"), "reference")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (GatedRepoError, "gated; accept its terms"),
        (RevisionNotFoundError, "no such revision"),
        (LocalEntryNotFoundError, "hub cannot be reached"),
        (OSError, "could not deliver it"),
    ],
)
def test_what_the_hub_refuses_is_said(raised: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise raised.__new__(raised)

    monkeypatch.setattr(sources, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=said):
        load(spec("owner/model", revision="v9"), "reference")


def test_a_hub_snapshot_is_recorded_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = save(tiny_llama(), tmp_path / commit)
    monkeypatch.setattr(sources, "snapshot_download", lambda *_, **__: str(snapshot))
    pinned = load(spec("owner/model", revision=commit), "reference")
    assert (pinned.identity.revision, pinned.notes) == (commit, ())
    branch = load(spec("owner/model", revision="main"), "reference")
    assert branch.identity.revision == commit
    assert [note.topic for note in branch.notes] == ["revision"]


def test_a_revision_for_a_local_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="revision 'main' is for models on the hub"):
        load(spec(folder, revision="main"), "reference")


@pytest.mark.parametrize("device", ["cuda:99", "meta", "nonsense"])
def test_a_device_that_is_not_there_is_refused_before_loading(device: str, folder: Path) -> None:
    with pytest.raises(ModelError, match="device"):
        load(spec(folder, device=device), "reference")


def test_a_folder_without_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "special_tokens_map.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer cannot be loaded: the folder holds none; copy tokenizer\.json"):
        load(spec(folder), "reference")


def test_a_tokenizer_that_cannot_be_loaded_is_refused_in_one_line(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer cannot be loaded by the class") as refused:
        load(spec(folder), "reference")
    assert "\n" not in str(refused.value)


# --- faults 12 to 14: damaged or incomplete -----------------------------------------------------------------


def test_a_missing_tensor_is_refused_by_name(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"missing.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(spec(folder), "variant")


def test_a_tied_head_is_not_missing_but_a_free_one_is(tmp_path: Path) -> None:
    tied = save(tiny_llama(tied=True), tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    load(spec(tied), "reference")
    free = save(tiny_llama(tied=False), tmp_path / "free")
    load(spec(free), "reference")
    change_weights(free, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ModelError, match=r"missing.*lm_head\.weight"):
        load(spec(free), "reference")


def test_a_missing_embedding_is_refused_though_the_head_is_tied_to_it(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    with pytest.raises(ModelError, match=r"missing.*embed_tokens"):
        load(spec(folder), "variant")


def test_a_left_over_tensor_is_refused_by_name(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"model.extra.weight_scale": torch.ones(3)}))
    with pytest.raises(ModelError, match=r"unexpected.*model\.extra\.weight_scale"):
        load(spec(folder), "variant")


def test_a_tensor_of_another_shape_is_refused(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(63)}))
    with pytest.raises(ModelError, match=r"of another shape.*model\.norm\.weight.*63.*64"):
        load(spec(folder), "variant")


def test_a_shorter_config_leaves_tensors_over(folder: Path) -> None:
    change_config(folder, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"unexpected.*model\.layers\.1\."):
        load(spec(folder), "variant")


def test_files_that_change_during_the_run_are_found_at_the_end(folder: Path) -> None:
    loaded = load(spec(folder), "reference")
    verify_unchanged(loaded)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    os.utime(path, ns=(1, 1))
    verify_unchanged(loaded)  # Other times, same content.
    stat = path.stat()
    content[-5] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ModelError, match=r"changed while the run used them: .*model\.safetensors"):
        verify_unchanged(loaded)


def test_a_file_that_vanishes_during_the_run_is_found(folder: Path) -> None:
    loaded = load(spec(folder), "reference")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        verify_unchanged(loaded)


# --- faults 15 and 16 on the way in (the file checks are in test_trust) -------------------------------------


def test_a_pickle_is_not_loaded(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model\.bin but no safetensors.*save_pretrained"):
        load(spec(folder), "reference")


def test_remote_code_is_refused_unless_allowed_and_then_only_pinned(folder: Path) -> None:
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    marker = folder / "ran"
    (folder / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ModelError, match="auto_map"):
        load(spec(folder), "reference")
    assert not marker.exists()
    with pytest.raises(ModelError, match="commit of 40 hex digits"):
        load(spec("owner/model", revision="main", trust_remote_code=True), "reference")


# --- faults 19 to 21 ----------------------------------------------------------------------------------------


def test_a_parameter_of_another_type_than_declared_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoint._load_model

    def upcast(path: Path, wanted: ModelSpec, loader: Any) -> PreTrainedModel:
        model = real(path, wanted, loader)
        model.model.layers[1].mlp.up_proj.double()
        return model

    monkeypatch.setattr(checkpoint, "_load_model", upcast)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight is torch\.float64, but declared is float32"):
        load(spec(folder), "reference")


def test_parameters_that_the_architecture_keeps_in_float32_are_accepted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint._load_model

    def norms_in_float32(path: Path, wanted: ModelSpec, loader: Any) -> PreTrainedModel:
        model = real(path, wanted, loader)
        model.model.norm.float()
        return model

    monkeypatch.setattr(checkpoint, "_load_model", norms_in_float32)
    with pytest.raises(ModelError, match="declared is bfloat16"):
        load(spec(folder, dtype="bfloat16"), "reference")
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_keep_in_fp32_modules", ["model.norm"])
    load(spec(folder, dtype="bfloat16"), "reference")


def test_a_model_without_values_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = checkpoint._load_model
    monkeypatch.setattr(checkpoint, "_load_model", lambda path, wanted, loader: real(path, wanted, loader).to("meta"))
    with pytest.raises(ModelError, match="meta device"):
        load(spec(folder), "reference")


def test_a_part_that_stays_in_training_mode_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class AlwaysOn(nn.Dropout):
        def train(self, mode: bool = True) -> AlwaysOn:
            return super().train(True)

    real = checkpoint._load_model

    def with_dropout(path: Path, wanted: ModelSpec, loader: Any) -> PreTrainedModel:
        model = real(path, wanted, loader)
        model.model.layers[0].extra = AlwaysOn()
        return model

    monkeypatch.setattr(checkpoint, "_load_model", with_dropout)
    with pytest.raises(ModelError, match=r"model\.layers\.0\.extra is in training mode"):
        load(spec(folder), "reference")


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.v_proj.weight", "model.embed_tokens.weight"])
def test_weights_that_are_all_zero_are_refused(name: str, folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors[name].zero_())
    with pytest.raises(ModelError, match=f"all weights of {name.removesuffix('.weight')} are zero|lm_head are zero"):
        load(spec(folder), "variant")


def test_a_quantization_that_transformers_would_ignore_is_refused(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    with pytest.raises(ModelError, match=r"quant_method is 'modelopt', which transformers does not know"):
        load(spec(folder), "variant")


@pytest.mark.parametrize(
    ("config", "library"),
    [
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "gptqmodel"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"load_in_4bit": True}, "bitsandbytes"),
    ],
)
def test_a_quantized_checkpoint_whose_library_is_missing_says_how_to_install_it(
    config: dict[str, object], library: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.models.prequantized._is_installed", lambda _: False)
    change_config(folder, quantization_config=config)
    with pytest.raises(MissingDependencyError, match=f"needs the library {library}.*pip install "):
        load(spec(folder), "variant")


def test_integer_weights_without_a_quantization_config_are_refused(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(folder, lambda tensors: tensors.update({name: tensors[name].mul(100).to(torch.int8)}))
    with pytest.raises(ModelError, match=r"up_proj\.weight .* is stored as I8.*no quantization_config"):
        load(spec(folder), "variant")


def test_a_quantization_beside_the_config_is_refused(folder: Path) -> None:
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    with pytest.raises(ModelError, match=r"hf_quant_config\.json"):
        load(spec(folder), "variant")


# --- variants -----------------------------------------------------------------------------------------------


class Broken(Backend):
    """Fails as a library does."""

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        raise ZeroDivisionError("somewhere deep")


class Emptier(Backend):
    """Leaves a layer without values."""

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        model.model.layers[0].mlp.to("meta")
        return Compressed(model, ())


class Doubler(Backend):
    """Doubles a norm in place; a careless step that would ruin a reference it shares weights with."""

    needs_calibration = True

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        model.model.norm.weight.mul_(2)
        model.train()
        stated = ModuleFormat(
            module="model.norm",
            type="Norm",
            parameters=64,
            stored_bytes=1,
            bits_per_weight=1.0,
            format=NumberFormat(type="other", element="doubled"),
        )
        return Compressed(model, (stated,))


Broken.kind, Doubler.kind, Emptier.kind = "broken", "doubler", "emptier"
CALIBRATION = [torch.tensor([0, 1, 2])]


def weights(loaded: LoadedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}


def test_a_variant_of_the_reference_leaves_every_byte_of_it_alone(folder: Path) -> None:
    reference = load(spec(folder), "reference")
    before, config = weights(reference), reference.model.config.to_dict()
    steps = (Doubler(), RoundToNearest(bits=2, skip=()))
    variant = make_variant(plan_of(folder, VariantSpec(compress=steps)), reference, CALIBRATION)
    after = weights(reference)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].view(torch.int32), after[name].view(torch.int32)) for name in before)
    assert weights_sha256(reference.model) == reference.identity.weights_sha256
    assert reference.model.config.to_dict() == config
    assert variant.identity.weights_sha256 != reference.identity.weights_sha256
    assert variant.name == variant.identity.name == "tiny-w4"
    assert not variant.model.training


def test_a_variant_without_steps_is_the_same_model(folder: Path) -> None:
    reference = load(spec(folder), "reference")
    variant = make_variant(plan_of(folder, VariantSpec()), reference, ())
    assert variant.model is not reference.model
    assert variant.identity.same_as(reference.identity)
    assert variant.files == reference.files


def test_a_checkpoint_variant_inherits_dtype_and_attention_unless_it_says_otherwise(tmp_path: Path) -> None:
    first, second = save(tiny_llama(), tmp_path / "a"), save(tiny_llama(seed=1), tmp_path / "b")
    reference = load(spec(first, dtype="bfloat16", attention="eager"), "reference")
    plan = plan_of(first, VariantSpec(model=str(second)), dtype="bfloat16", attention="eager")
    variant = make_variant(plan, reference, ())
    assert (variant.identity.dtype, variant.identity.attention) == ("bfloat16", "eager")
    assert not variant.identity.same_as(reference.identity)
    plan = plan_of(first, VariantSpec(model=str(second), dtype="float32"), dtype="bfloat16")
    assert make_variant(plan, reference, ()).identity.dtype == "float32"


def test_formats_come_from_the_step_that_touched_a_module_and_from_inspection(folder: Path) -> None:
    reference = load(spec(folder), "reference")
    attention = RoundToNearest(bits=4, skip=("lm_head", "*.mlp.*"))
    steps = (RoundToNearest(bits=8, only=("*.mlp.*",)), attention, Doubler())
    variant = make_variant(plan_of(folder, VariantSpec(compress=steps)), reference, CALIBRATION)
    formats = {module.module: module.format.name for module in variant.identity.modules}
    assert formats["model.layers.0.self_attn.q_proj"] == "int4"
    assert formats["model.layers.1.mlp.down_proj"] == "int8"
    assert formats["model.norm"] == "doubled"
    assert formats["model.embed_tokens"] == "float32"
    assert variant.identity.simulated
    assert variant.identity.parameters == reference.identity.parameters


def test_a_module_is_not_quantized_twice(folder: Path) -> None:
    reference = load(spec(folder), "reference")
    steps = (RoundToNearest(bits=8, only=("*.mlp.*",)), RoundToNearest(bits=4))
    with pytest.raises(BackendError, match=r"gate_proj was quantized by round_to_nearest already; give each step"):
        make_variant(plan_of(folder, VariantSpec(compress=steps)), reference, ())


def test_a_shorter_last_group_is_noted(tmp_path: Path) -> None:
    folder = save(tiny_gpt2(), tmp_path / "gpt2")
    reference = load(spec(folder), "reference")
    step = RoundToNearest(bits=4, group_size=32)
    variant = make_variant(plan_of(folder, VariantSpec(compress=(step,))), reference, ())
    ragged = [note.text for note in variant.notes if note.topic == "ragged groups"]
    assert ragged == ["tiny-w4: in 6 modules the last group is shorter (transformer.h.0.attn.c_attn, groups of 32)"]


def test_a_step_that_fails_is_named(folder: Path) -> None:
    reference = load(spec(folder), "reference")
    with pytest.raises(BackendError, match="broken: ZeroDivisionError: somewhere deep"):
        make_variant(plan_of(folder, VariantSpec(compress=(Broken(),))), reference, ())
    with pytest.raises(BackendError, match="doubler: needs calibration documents"):
        make_variant(plan_of(folder, VariantSpec(compress=(Doubler(),))), reference, ())
    with pytest.raises(ModelError, match=r"tiny-w4: model\.layers\.0\.mlp\..* is on the meta device"):
        make_variant(plan_of(folder, VariantSpec(compress=(Emptier(),))), reference, ())
