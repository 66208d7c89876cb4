"""Verifies a model folder before anything in it is interpreted: no code, no damage, files match the manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import ModelError
from harness.models.fingerprints import FileFingerprint, file_sha256
from harness.models.weight_files import WeightHeaders, read_headers, read_json, weight_files

CODE_FIELDS = frozenset(
    {
        "auto_map",
        "_attn_implementation_internal",
        "_experts_implementation_internal",
        "kernel_config",
        "use_kernels",
    }
)
"""Configuration fields that make transformers import code from the folder or the hub."""
BUILT_IN = re.compile(r"[a-z0-9_]*")
"""Pattern of the names of built-in attention implementations; a kernel on the hub has a slash in its name."""
MANIFEST = "manifest.json"
LAYER_FIELDS = frozenset({"num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"})
WIDTH_FIELDS = frozenset(
    {"hidden_size", "n_embd", "d_model", "vocab_size", "intermediate_size", "n_inner", "ffn_dim"}
    | {"num_attention_heads", "n_head", "num_key_value_heads", "head_dim"}
    | {"num_experts", "num_local_experts", "moe_intermediate_size"}
)
PACKED = 32
"""How much smaller than the layer's a dimension of packed codes can be: 32 codes of one bit in a word."""


def check_folder(
    folder: Path, fingerprints: Sequence[FileFingerprint], trust_remote_code: bool, manifest: bool
) -> WeightHeaders:
    """Check everything that can be checked without loading; returns the content of the weight files' headers.

    manifest: whether a manifest.json with a sha256 for every file is required (if one exists it is always compared with
    the files). Raises ModelError naming the file and the field.
    """
    config = read_json(folder / "config.json")
    check_manifest(folder, fingerprints, required=manifest)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder}: adapter_config.json makes this an adapter on top of another model, which would be "
            "loaded unchecked; merge it into its base (peft: merge_and_unload) and save the result"
        )
    if not trust_remote_code:
        for path in sorted(folder.glob("*config.json")):
            check_code_fields(path)
    files = weight_files(folder, config)
    weights = read_headers(files)
    check_sizes(folder / "config.json", config, weights)
    return weights


def check_sizes(path: Path, config: Mapping[str, Any], weights: WeightHeaders) -> None:
    """Raise ModelError for sizes that no tensor of the files is near, before memory is asked for by them."""
    for where, key, value in _fields(config):
        most, why = 0, ""
        if key in LAYER_FIELDS:
            most, why = len(weights.dtypes), f"the weight files hold {len(weights.dtypes)} tensors"
        elif key in WIDTH_FIELDS:
            most, why = PACKED * weights.largest, f"the largest dimension in the weight files is {weights.largest}"
        if why and isinstance(value, int | float) and value > most:
            raise ModelError(
                f"{path}: {where}: found {value}, but {why}, so the config belongs to another model or is damaged; "
                "restore the file"
            )


def check_token_ids(folder: Path, weights: WeightHeaders) -> None:
    """Raise ModelError for a token whose id no tensor of the files is near: tokenizers count up to the highest one."""
    most = PACKED * weights.largest
    for path in (folder / "tokenizer.json", folder / "vocab.json"):
        for token, found in _token_ids(read_json(path)) if path.is_file() else ():
            if isinstance(found, int) and not 0 <= found <= most:
                raise ModelError(
                    f"{path}: the token {shorten(token)} has the id {found}, but the largest dimension in the weight "
                    f"files is {weights.largest}, so the tokenizer belongs to another model or is damaged; restore "
                    "the file"
                )


def _token_ids(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Tokens and ids of a tokenizer.json, or of the mapping in a vocab.json."""
    model, added = content.get("model", {"vocab": content}), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    yield from vocabulary.items() if isinstance(vocabulary, dict) else ()
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict):
            yield str(entry.get("content")), entry.get("id")


def check_manifest(folder: Path, fingerprints: Sequence[FileFingerprint], required: bool) -> None:
    """Compare every file with ``manifest.json``: ``{"files": {name: sha256}}``, or the inner object alone.

    Raises ModelError for a listed file that is missing or differs, and for a file that loading would read but the
    manifest does not list.
    """
    path = folder / MANIFEST
    if not path.exists():
        if required:
            raise ModelError(f"{folder}: {MANIFEST} is missing, so its files cannot be checked; install again")
        return
    listed = _hashes(read_json(path))
    if not listed:
        if required:
            raise ModelError(f"{path}: lists no file with its sha256; install again")
        return
    hashes = {file.path.name: file.sha256 for file in fingerprints if file.path.name != MANIFEST}
    others = {name: folder / name for name in listed.keys() - hashes.keys() if Path(name).name == name}
    hashes |= {name: file_sha256(path) for name, path in others.items() if path.is_file()}
    problems = [f"{name} is missing" for name in sorted(listed.keys() - hashes.keys())]
    problems += [f"{name} is not listed" for name in sorted(hashes.keys() - listed.keys())]
    problems += [
        f"{name} has sha256 {hashes[name][:12]}…, expected {listed[name][:12]}…"
        for name in sorted(listed.keys() & hashes.keys())
        if hashes[name] != listed[name]
    ]
    if problems:
        raise ModelError(f"{path}: the files are not the ones listed: {'; '.join(problems)}; restore them")


def check_code_fields(path: Path) -> None:
    """Raise ModelError if a configuration file names code or custom kernels at any depth."""
    for where, key, value in _fields(read_json(path)):
        if key in CODE_FIELDS and value not in (None, False, {}, []):
            raise ModelError(
                f"{path}: {where}: {shorten(value)} makes loading run code that is not part of transformers; "
                "if you trust it, set trust_remote_code: true (for a model on the hub with the commit as "
                "revision)"
            )
        if key.endswith("_implementation") and any(not BUILT_IN.fullmatch(text) for text in _strings(value)):
            raise ModelError(
                f"{path}: {where}: {shorten(value)} is a custom kernel; remove the field and choose "
                "attention: in the YAML, or set trust_remote_code: true if you trust it"
            )


def _hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """File name to sha256, from the known shapes of a manifest; empty for anything else."""
    entries = manifest.get("files", manifest)
    if not isinstance(entries, dict):
        return {}
    hashes = {name: value.get("sha256") if isinstance(value, dict) else value for name, value in entries.items()}
    return {
        name: value for name, value in hashes.items() if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value)
    }


def _fields(content: Any) -> Iterator[tuple[str, str, Any]]:
    """Dotted path, key and value of every field at any depth; iterative, so that deep nesting cannot exhaust the call
    stack."""
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        trail, value = waiting.pop()
        if isinstance(value, dict):
            for key, each in value.items():
                yield f"{trail}{key}", key, each
                waiting.append((f"{trail}{key}.", each))
        elif isinstance(value, list):
            waiting += [(trail, each) for each in value]


def _strings(value: Any) -> list[str]:
    """The text itself, or the texts in an object (one implementation per sub-model)."""
    return [each for each in (value.values() if isinstance(value, dict) else [value]) if isinstance(each, str)]


def shorten(value: Any) -> str:
    """A value as JSON, in at most 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"
