"""GGUF files through transformers: the same numbers as the blocks of the file, named by what the file holds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import MissingDependencyError, ModelError
from harness.models.gguf_file import GgufFile, read_gguf, vocabulary_difference
from harness.models.loaded import LoadedModel, verify_unchanged
from harness.models.loading import load
from harness.planning.specs import VariantSpec
from harness.records import ModelSpec
from harness.running.variant import make_variant
from tests.helpers.gguf_files import UNUSED, q4_0, q8_0, spm_tokens, tensors_of, write_gguf
from tests.helpers.tiny_models import save, tiny_llama
from tests.models.test_loading import plan_of

gguf = pytest.importorskip("gguf")

IDS = torch.tensor([[0, 5, 9, 2, 40, 33, 7, 90]])
SIZES: dict[str, Any] = {"intermediate_size": 96}
"""Inputs that blocks of 32 divide."""
BITS = {"F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5, "Q5_1": 6.0}


@pytest.fixture
def reference(tmp_path: Path) -> LoadedModel:
    return load(ModelSpec(model=str(save(tiny_llama(**SIZES), tmp_path / "model"))), "reference")


def variant_of(reference: LoadedModel, path: Path, **fields: Any) -> LoadedModel:
    plan = plan_of(Path(reference.identity.source), VariantSpec(model=str(path), **fields))
    return make_variant(plan, reference, ())


def format_of(loaded: LoadedModel, name: str) -> Any:
    return next(module for module in loaded.identity.modules if module.module == name)


def logits(loaded: LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = loaded.model(IDS).logits
    return found


# --- the same model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_of_floats_is_the_model_it_was_made_of(tied: bool, tmp_path: Path) -> None:
    model = tiny_llama(tied=tied, **SIZES)
    reference = load(ModelSpec(model=str(save(model, tmp_path / "model"))), "reference")
    variant = variant_of(reference, write_gguf(model, tmp_path / "f32.gguf"))
    assert torch.allclose(logits(variant), logits(reference), atol=1e-5)
    theirs = dict(reference.model.named_parameters())
    assert all(torch.equal(each, theirs[name]) for name, each in variant.model.named_parameters())
    assert not variant.identity.simulated
    assert variant.identity.parameters == reference.identity.parameters


@pytest.mark.parametrize(("kind", "decode"), [("Q4_0", q4_0), ("Q8_0", q8_0)])
def test_weights_are_the_blocks_of_the_file_by_their_definition(
    kind: str, decode: Any, reference: LoadedModel, tmp_path: Path
) -> None:
    model = tiny_llama(**SIZES)
    path = write_gguf(model, tmp_path / "q.gguf", kind)
    variant = variant_of(reference, path)
    raw = {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}
    up = decode(raw["blk.1.ffn_up.weight"]).reshape(96, 64)
    assert np.array_equal(variant.model.model.layers[1].mlp.up_proj.weight.numpy(), up)
    heads, rows = 2, 32
    key = decode(raw["blk.0.attn_k.weight"]).reshape(heads, rows // heads // 2, 2, 64).swapaxes(1, 2).reshape(rows, 64)
    assert np.array_equal(variant.model.model.layers[0].self_attn.k_proj.weight.numpy(), key)
    original = tensors_of(model)["blk.1.ffn_up.weight"]
    assert 0 < np.abs(up - original).max() < 0.02


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_formats_and_bytes_are_those_of_the_file(kind: str, reference: LoadedModel, tmp_path: Path) -> None:
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", kind)
    identity = variant_of(reference, path).identity
    found = {module.module: module for module in identity.modules}
    up = found["model.layers.0.mlp.up_proj"]
    assert up.bits_per_weight == BITS[kind]
    assert up.stored_bytes == 96 * 64 * BITS[kind] / 8
    assert (up.kernel, up.parameters, up.role) == ("simulated", 96 * 64, "linear")
    quantized = kind.startswith("Q")
    assert (up.format.name, up.format.group_size, up.backend) == (
        (kind, 32, "gguf") if quantized else ({"F16": "float16", "BF16": "bfloat16"}[kind], None, "")
    )
    norm = found["model.norm"]
    assert (norm.format.name, norm.kernel, norm.stored_bytes, norm.backend) == ("float32", "real", 256, "")
    head = found["lm_head"]
    assert (head.type, head.parameters, head.stored_bytes, head.format) == ("Linear (shared)", 0, 0, up.format)
    in_file = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
    assert sum(module.stored_bytes for module in identity.modules) == in_file
    assert identity.simulated
    assert {module.module for module in identity.modules} == {m.module for m in reference.identity.modules}


def test_asymmetric_blocks_are_called_so(reference: LoadedModel, tmp_path: Path) -> None:
    variant = variant_of(reference, write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", "Q5_1"))
    assert format_of(variant, "model.layers.0.mlp.up_proj").format.symmetric is False


def test_a_reader_is_told_that_the_speed_is_that_of_floats(reference: LoadedModel, tmp_path: Path) -> None:
    variant = variant_of(reference, write_gguf(tiny_llama(**SIZES), tmp_path / "q4.gguf", "Q4_0"))
    (note,) = [note for note in variant.notes if note.topic == "gguf"]
    assert "q4.gguf (Q4_0, F32) runs on dequantized weights" in note.text
    assert "does not clear the kernels of llama.cpp" in note.text
    assert note.level == "warn"


def test_k_quants_are_read_with_their_bits(tmp_path: Path) -> None:
    path, kinds = tmp_path / "k.gguf", {"Q4_K": 4.5, "Q6_K": 6.5625, "Q2_K": 2.625}
    writer = gguf.GGUFWriter(path, "llama")
    for kind in kinds:
        size, data = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]], np.random.default_rng(0)
        blocks = data.integers(256, size=(4, 512 // size[0] * size[1]), dtype=np.uint8)
        writer.add_tensor(f"{kind}.weight", blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(path)
    assert {tensor.type: 8 * tensor.size / tensor.values for tensor in found.tensors} == kinds
    assert all(tensor.shape == (4, 512) for tensor in found.tensors)


def test_what_lies_beside_the_file_is_not_read(reference: LoadedModel, tmp_path: Path) -> None:
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", "Q8_0")
    for name in ("adapter_config.json", "tokenizer.json", "config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text('{"broken": ')
    variant_of(reference, path)


def test_a_file_in_a_folder_is_found_by_its_name(tmp_path: Path) -> None:
    write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", "Q8_0")
    loaded = load(ModelSpec(model=str(tmp_path), file="q.gguf"), "x")
    assert format_of(loaded, "model.layers.0.mlp.up_proj").format.name == "Q8_0"
    with pytest.raises(ModelError, match=r"file 'r\.gguf' is not a GGUF file in it; its GGUF files: q\.gguf"):
        load(ModelSpec(model=str(tmp_path), file="r.gguf"), "x")


def test_a_folder_with_nothing_else_says_what_to_write(tmp_path: Path) -> None:
    write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"name it in the YAML: file: q\.gguf"):
        load(ModelSpec(model=str(tmp_path)), "x")


def test_a_change_of_the_file_is_found(tmp_path: Path) -> None:
    loaded = load(ModelSpec(model=str(write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", "Q8_0"))), "x")
    verify_unchanged(loaded)
    with (tmp_path / "q.gguf").open("r+b") as file:
        file.seek(-7, 2)
        file.write(b"\x55")
    with pytest.raises(ModelError, match=r"changed while the run used them: .*q\.gguf"):
        verify_unchanged(loaded)


def test_loading_says_nothing_on_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", "Q8_0")
    capfd.readouterr()
    load(ModelSpec(model=str(path)), "x")
    assert capfd.readouterr() == ("", "")


# --- what would be another model ----------------------------------------------------------------------------


def test_a_tensor_that_transformers_leaves_out_is_refused(tmp_path: Path) -> None:
    extra = {"rope_freqs.weight": np.ones(8, np.float32)}
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", extra=extra)
    with pytest.raises(ModelError, match=r"ignores 1 of its tensors \(rope_freqs\.weight\).*engine: llama_cpp"):
        load(ModelSpec(model=str(path)), "x")


def test_scaled_positions_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", values={"llama.rope.scaling.type": "yarn"})
    with pytest.raises(ModelError, match=r"its positions are scaled \(yarn\)"):
        load(ModelSpec(model=str(path)), "x")


def test_a_missing_tensor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tensors_of(tiny_llama(**SIZES))
    del whole["blk.1.ffn_up.weight"]
    monkeypatch.setattr("tests.helpers.gguf_files.tensors_of", lambda _: whole)
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf")
    with pytest.raises(ModelError, match=r"missing.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(ModelSpec(model=str(path)), "x")


@pytest.mark.parametrize("values", [0, 1, 32])
def test_a_tensor_of_another_shape_is_refused(values: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm of one value would be broadcast: another model without an error."""
    tensors = tensors_of(tiny_llama(**SIZES))
    tensors["output_norm.weight"] = tensors["output_norm.weight"][:values]
    monkeypatch.setattr("tests.helpers.gguf_files.tensors_of", lambda _: tensors)
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf")
    with pytest.raises(ModelError, match=rf"q\.gguf: the tensor model\.norm\.weight has the shape \[{values}\]"):
        load(ModelSpec(model=str(path)), "x")


@pytest.mark.parametrize("damage", ["cut", "magic", "empty"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", "Q4_0")
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-4000], "magic": b"GGML" + data[4:], "empty": b""}[damage])
    with pytest.raises(ModelError, match=r"q\.gguf: damaged, truncated, or not a GGUF file"):
        load(ModelSpec(model=str(path)), "x")


def test_one_part_of_several_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf")
    real = gguf.GGUFReader

    def reader(path: Path) -> Any:
        found = real(path)
        found.fields["split.count"] = found.fields["llama.block_count"]
        return found

    monkeypatch.setattr(gguf, "GGUFReader", reader)
    with pytest.raises(ModelError, match=r"one of 2 parts of a model; join them first"):
        load(ModelSpec(model=str(path)), "x")


def test_an_architecture_that_transformers_cannot_read_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama", b"lamma"))
    with pytest.raises(ModelError, match=r"transformers cannot load it: .*lamma.*engine: llama_cpp"):
        load(ModelSpec(model=str(path)), "x")


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r'library gguf.*pip install "lm-shipcheck\[gguf\]"'):
        load(ModelSpec(model=str(path)), "x")


# --- tokenizers ---------------------------------------------------------------------------------------------

TEXT = "The cat 1 sat, on (a) mat."


def test_the_files_own_tokenizer_gives_the_same_ids(reference: LoadedModel, tmp_path: Path) -> None:
    variant = variant_of(reference, write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf"))
    given = [side.tokenizer(TEXT, add_special_tokens=False)["input_ids"] for side in (reference, variant)]
    assert given[0] == given[1]


def test_the_end_token_is_the_files_and_not_what_transformers_takes(tmp_path: Path) -> None:
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", tokens=spm_tokens() | {"eos": 60})
    loaded = load(ModelSpec(model=str(path)), "x")
    assert (loaded.tokenizer.bos_token_id, loaded.tokenizer.eos_token_id) == (0, 60)
    assert any(note.topic == "tokenizer" and "the EOS token is" in note.text for note in loaded.notes)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_bos_is_put_where_the_file_says_so(kind: str, adds: bool, tmp_path: Path) -> None:
    tokens = spm_tokens() | {"adds_bos": adds}
    if kind == "gpt2":
        tokens |= {"model": "gpt2", "merges": ["a b", "c d"], "tokens": [*tokens["tokens"][:-2], "ab", "cd"]}
    loaded = load(ModelSpec(model=str(write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", tokens=tokens))), "x")
    assert (loaded.tokenizer("cab")["input_ids"][0] == 0) is adds
    assert loaded.tokenizer("cab", add_special_tokens=False)["input_ids"][0] != 0


def test_the_references_tokenizer_is_taken_where_the_vocabulary_is_the_same(
    reference: LoadedModel, tmp_path: Path
) -> None:
    tokens = spm_tokens()
    tokens["tokens"] = ["<s>", " ", *tokens["tokens"][2:]]
    path = write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", "Q8_0", tokens=tokens)
    variant = variant_of(reference, path, tokenizer="reference")
    assert variant.identity.tokenizer_sha256 == reference.identity.tokenizer_sha256
    assert any("encoded with the reference's tokenizer" in note.text for note in variant.notes)
    tokens["tokens"][40], tokens["tokens"][41] = tokens["tokens"][41], tokens["tokens"][40]
    swapped = write_gguf(tiny_llama(**SIZES), tmp_path / "swapped.gguf", "Q8_0", tokens=tokens)
    with pytest.raises(ModelError, match=r"needs the same vocabulary, but the id 40 is 'H' in the file and 'G'"):
        variant_of(reference, swapped, tokenizer="reference")


def test_padding_of_a_vocabulary_is_no_difference() -> None:
    file = GgufFile(Path("x"), "llama", {}, ("a", "b", "[PAD2]"), frozenset({2}), ())
    assert vocabulary_difference(file, ["a", "b"]) == ""
    assert vocabulary_difference(file, ["a", "b", "c"]) == ""
    assert "has 1 tokens more, 'b' first" in vocabulary_difference(file, ["a"])
    assert "the id 3 is nothing in the file and 'd'" in vocabulary_difference(file, ["a", "b", None, "d"])
    assert UNUSED == 5
