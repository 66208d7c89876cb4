"""A model folder is checked before anything in it is interpreted."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from harness.errors import ModelError
from harness.models.fingerprints import fingerprint_folder
from harness.models.trust import check_code_fields, check_folder
from harness.models.weight_files import check_safetensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    save_file(
        {"a.weight": torch.ones(4, 4), "b.weight": torch.ones(2, dtype=torch.bfloat16)},
        path / "model.safetensors",
    )
    return path


def check(folder: Path, trust: bool = False, manifest: bool = False) -> tuple[str, ...]:
    return check_folder(folder, fingerprint_folder(folder), trust, manifest).floating_dtypes()


def test_a_sound_folder_passes_and_says_its_types(folder: Path) -> None:
    assert check(folder) == ("bfloat16", "float32")


@pytest.mark.parametrize(
    "content",
    [
        {"num_hidden_layers": 2**31},
        {"num_hidden_layers": 3},
        {"text_config": {"vocab_size": 2**40}},
        {"hidden_size": 1e300},
        {"num_key_value_heads": 4 * 32 + 1},
    ],
    ids=str,
)
def test_sizes_that_no_tensor_is_near_are_refused_before_memory_is_asked_for(
    content: dict[str, object], folder: Path
) -> None:
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"config\.json: .*(layers|size|heads): found .*, but the"):
        check(folder)


def test_sizes_that_packed_tensors_may_have_are_taken(folder: Path) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 4 * 32, "vocab_size": 4, "max_position_embeddings": 2**30}
    (folder / "config.json").write_text(json.dumps(sizes))
    check(folder)


# --- manifest -----------------------------------------------------------------------------------------------


def write_manifest(folder: Path) -> dict[str, str]:
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    return files


def test_one_flipped_bit_anywhere_is_found(folder: Path) -> None:
    write_manifest(folder)
    check(folder, manifest=True)
    for name in ("model.safetensors", "config.json"):
        path = folder / name
        good = path.read_bytes()
        for place in (0, len(good) // 2, len(good) - 1):
            bad = bytearray(good)
            bad[place] ^= 0x10
            path.write_bytes(bad)
            with pytest.raises(ModelError, match=rf"{name}"):
                check(folder, manifest=True)
        path.write_bytes(good)
    check(folder, manifest=True)


def test_a_file_that_is_gone_or_was_added_is_found(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("about")
    write_manifest(folder)
    (folder / "README.md").write_text("changed")
    with pytest.raises(ModelError, match=r"README\.md has sha256"):
        check(folder, manifest=True)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        check(folder, manifest=True)
    write_manifest(folder)
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"generation_config\.json is not listed"):
        check(folder, manifest=True)


def test_a_manifest_that_is_wanted_must_be_there_and_say_something(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"manifest\.json is missing"):
        check(folder, manifest=True)
    (folder / "manifest.json").write_text('{"files": {"model.safetensors": "none"}}')
    with pytest.raises(ModelError, match="lists no file"):
        check(folder, manifest=True)
    check(folder, manifest=False)  # Somebody else's manifest says nothing about these files.


# --- pickles and adapters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "tf_model.h5", "weights.pkl"])
def test_a_folder_with_only_pickles_says_how_to_convert(name: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match=rf"{name} but no safetensors file.*save_pretrained"):
        check(folder, trust=True)


def test_a_pickle_beside_safetensors_is_ignored(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    check(folder)


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere/base"}')
    with pytest.raises(ModelError, match=r"adapter_config\.json.*merge_and_unload"):
        check(folder)


def test_a_folder_without_weights_or_config_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        check(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        check(folder)


# --- code ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "field"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling.M"}}, "auto_map"),
        ("config.json", {"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
        ("config.json", {"text_config": {"_experts_implementation_internal": "x"}}, "text_config._experts"),
        ("config.json", {"attn_implementation": "someone/kernel"}, "attn_implementation"),
        ("config.json", {"_attn_implementation": {"text_config": "a/b:c"}}, "_attn_implementation"),
        ("config.json", {"parts": [{"auto_map": {"AutoConfig": "c.C"}}]}, r"parts\.auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["t.T", None]}}, "auto_map"),
        ("generation_config.json", {"auto_map": {"x": "y.Z"}}, "auto_map"),
        ("config.json", {"use_kernels": True}, "use_kernels"),
        ("config.json", json.loads('{"a": [' * 200 + '{"auto_map": {"x": "y.Z"}}' + "]}" * 200), r"a\.a\."),
    ],
)
def test_fields_that_carry_code_are_refused(file: str, content: dict[str, object], field: str, folder: Path) -> None:
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"{file}: {field}.*trust_remote_code"):
        check(folder)
    check(folder, trust=True)


def test_built_in_implementations_are_no_code(folder: Path) -> None:
    content: dict[str, object] = {
        "attn_implementation": "flash_attention_2",
        "_attn_implementation": None,
        "auto_map": {},
    }
    (folder / "config.json").write_text(json.dumps(content))
    check_code_fields(folder / "config.json")


# --- damage -------------------------------------------------------------------------------------------------


def header(path: Path, content: object, size: int | None = None, data: bytes = b"") -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)


@pytest.mark.parametrize(
    ("content", "size", "data"),
    [
        (b"", None, b""),
        (b"{}", 2**63, b""),
        (b"{}", 10**12, b""),
        (b'{"a": [', None, b""),
        (b"\xff\xfe", None, b""),
        (b"[" * 5000, None, b""),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, None, b"\0" * 12),
        ({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}, None, b"\0" * 16),
        ({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 16]}}, None, b"\0" * 16),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}, None, b"\0" * 16),
        ({"a": {"dtype": "Q9", "shape": [4], "data_offsets": [0, 16]}}, None, b"\0" * 16),
        ({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, None, b"\0" * 16),
    ],
)
def test_malformed_headers_are_refused_by_file_name(
    content: object, size: int | None, data: bytes, folder: Path
) -> None:
    header(folder / "model.safetensors", content, size, data)
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged or truncated"):
        check(folder)


@given(st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, share: float) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.ones(40), "b": torch.zeros(3, 7)}, whole)
    cut = tmp_path / "cut.safetensors"
    content = whole.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match=r"cut\.safetensors"):
        list(check_safetensors(cut))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff", "[" * 20_000, '"text"'])
def test_a_config_that_is_no_object_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"config\.json: (not readable as JSON|holds a)"):
        check(folder)


# --- shards -------------------------------------------------------------------------------------------------


def shard(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_all_checked(folder: Path) -> None:
    shard(folder, {"a.weight": "one.safetensors", "c.weight": "two.safetensors"})
    with pytest.raises(ModelError, match=r"names the weight file 'two\.safetensors'"):
        check(folder)
    (folder / "two.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"two\.safetensors: damaged"):
        check(folder)
    save_file({"c.weight": torch.ones(2)}, folder / "two.safetensors")
    check(folder)


@pytest.mark.parametrize(
    "weight_map",
    [{}, [], {"a": 3}, {"a": "../model/one.safetensors"}, {"a": "/etc/passwd"}, {"a": "pytorch_model.bin"}],
)
def test_an_index_that_points_elsewhere_is_refused(weight_map: object, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    shard(folder, weight_map)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        check(folder)


@pytest.mark.parametrize("name", ["../other.safetensors", "evil.bin", "absent.safetensors"])
def test_a_weight_file_named_in_the_config_must_be_a_safetensors_file_of_the_folder(name: str, folder: Path) -> None:
    (folder / "evil.bin").write_bytes(b"")
    save_file({"a": torch.ones(1)}, folder.parent / "other.safetensors")
    (folder / "config.json").write_text(json.dumps({"transformers_weights": name}))
    with pytest.raises(ModelError, match="weight file"):
        check(folder)
