"""Checks the keys of ``variant`` about its checkpoint: GGUF file, engine, tokenizer, adapter.

Only the existence of files is checked here; their content is verified when they are loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.backends import Backend
from harness.engines import CheckpointKind
from harness.planning.checking import Checker
from harness.planning.specs import VariantSpec
from harness.records import ModelSpec
from harness.records.plan import GGUF
from harness.system.yaml_values import KeyPath, describe

DISTRIBUTION = "lm-shipcheck"
"""pip's name of this project."""
_PEFT = "pip install peft"
_READ: Mapping[CheckpointKind, str] = {
    "reference": "the reference",
    "folder": "a folder or a hub id",
    "gguf": "a GGUF file",
}
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def join_file(check: Checker, value: Mapping[str, Any], path: KeyPath, model: str, kind: str) -> dict[str, Any]:
    """The entry with ``file`` joined to its folder; for a model on the hub it stays separate. Notes problems."""
    entry, name = dict(value) | {"model": model}, value.get("file")
    if name is None:
        return entry
    place, expected = (*path, "file"), f"the name of a {GGUF} file in the folder or repository that model names"
    if kind not in ("folder", "hub"):
        what = "a GGUF file itself" if kind == "gguf" else f"{model!r}"
        check.problem(place, f"{describe(name)}, but model is {what}", "no file, or a folder as model")
    elif not isinstance(name, str) or not name.endswith(GGUF) or ".." in Path(name).parts:
        check.problem(place, describe(name), expected)
    elif kind == "folder":
        joined = Path(model) / name
        if not os.path.isfile(joined):
            there = sorted(each.name for each in Path(model).glob(f"*{GGUF}"))
            hint = f"it has {', '.join(there[:5])}" if there else "it has no GGUF files"
            check.problem(place, f"{name!r}: no such file ({joined})", expected, hint)
        return entry | {"model": str(joined), "file": None}
    return entry


def join_adapter(check: Checker, value: Mapping[str, Any], path: KeyPath) -> Mapping[str, Any]:
    """The entry with the folder of its adapter made absolute. Notes problems."""
    name = value.get("adapter")
    if not isinstance(name, str):
        return value
    folder = Path(os.path.abspath(check.folder / name))
    place, expected = (*path, "adapter"), f"a folder with {' and '.join(ADAPTER_FILES)}, as peft saves adapters"
    if not os.path.isdir(folder):
        check.problem(place, f"{name!r}: no such folder ({folder})", expected)
    elif lacking := [each for each in ADAPTER_FILES if not os.path.isfile(folder / each)]:
        check.problem(place, f"{name!r}, which has no {' and no '.join(lacking)} ({folder})", expected)
    elif find_spec("peft") is None:
        check.problem(place, "an adapter, but peft is not installed", "the library that computes it", _PEFT)
    return {**value, "adapter": str(folder)}


def check_checkpoint(
    check: Checker, given: Any, variant: VariantSpec, steps: Sequence[Backend], reference: ModelSpec | None
) -> None:
    """Note every contradictory combination of these keys. given: the entry as written."""
    written = given if isinstance(given, Mapping) else {}
    if variant.is_gguf:
        check_gguf(check, ("variant", "model"))
        if written.get("trust_remote_code") is True:
            check.problem(("variant", "trust_remote_code"), "true", "false: a GGUF file brings no code")
    _check_engine(check, written, variant, steps, reference)
    if variant.tokenizer == "reference" and variant.model == "reference":
        found = "reference, but the variant is made from the reference"
        check.problem(("variant", "tokenizer"), found, "no such key: the variant has that tokenizer anyway")
    if variant.adapter is None and "merge" in written:
        check.problem(("variant", "merge"), f"{describe(written['merge'])} and no adapter", "an adapter to merge")
    _check_one_adapter(check, variant, steps)
    if variant.adapter is not None and variant.is_gguf:
        found = f"an adapter on the GGUF file {Path(variant.model).name}"
        hint = "apply it to the checkpoint that it was trained on; llama.cpp has its own adapter format"
        check.problem(("variant", "adapter"), found, "a model in the format of transformers", hint)
    elif variant.adapter is not None and "weights" not in variant.engine.serves:
        found = f"an adapter, but engine is {variant.engine.kind}, which gives no access to weights"
        check.problem(("variant", "adapter"), found, "no adapter", "leave engine out")


def check_gguf(check: Checker, path: KeyPath) -> None:
    """Note that the library is missing that reads GGUF files."""
    _check_library(check, path, "gguf", "a GGUF file", "gguf")


def _check_one_adapter(check: Checker, variant: VariantSpec, steps: Sequence[Backend]) -> None:
    """Note a second adapter beside the weights: one is attached, once all steps are done."""
    leaving = [step.kind for step in steps if step.leaves_adapter]
    if leaving and variant.adapter is not None and not variant.merge:
        found = f"an adapter, and {leaving[0]}, which leaves one beside the weights"
        check.problem(("variant", "adapter"), found, "one adapter beside the weights", "merge one of the two")
    elif len(leaving) > 1:
        found = f"{' and '.join(leaving)}, which leave an adapter each beside the weights"
        check.problem(
            ("variant", "compress"), found, "one adapter beside the weights", "write merge: true in the first"
        )


def _check_engine(
    check: Checker,
    written: Mapping[str, Any],
    variant: VariantSpec,
    steps: Sequence[Backend],
    reference: ModelSpec | None,
) -> None:
    """Check that the engine can open the checkpoint, supports what is requested, and is comparable with the
    reference."""
    engine, path = variant.engine, ("variant", "engine")
    if variant.checkpoint_kind not in engine.reads:
        read = " or ".join(_READ[kind] for kind in engine.reads)
        check.problem(
            path, f"{engine.kind} with {variant.model}", f"{read} as model, the only kind that {engine.kind} reads"
        )
        return
    for library in engine.requires:
        _check_library(check, path, library, engine.kind, engine.extra, engine.install_note)
    if steps and "weights" not in engine.serves:
        found = f"{steps[0].kind}, but engine is {engine.kind}, which gives no access to weights and modules"
        check.problem(
            ("variant", "compress"), found, "no steps", "leave engine out, so that transformers computes the variant"
        )
    if reference and engine.devices and reference.device.partition(":")[0] not in engine.devices:
        found = (
            f"{engine.kind}, which runs on {' or '.join(engine.devices)}, but the reference is on {reference.device}"
        )
        check.problem(path, found, f"reference.device: {engine.devices[0]}")
    if engine.logits_dtype is not None and written.get("dtype") is not None:
        found = f"{describe(written['dtype'])} with engine {engine.kind}, which computes in the formats of the file"
        check.problem(("variant", "dtype"), found, "no dtype")


def _check_library(check: Checker, path: KeyPath, module: str, what: str, extra: str, note: str = "") -> None:
    if find_spec(module) is None:
        command = f'pip install "{DISTRIBUTION}[{extra}]"' if extra else f"pip install {module}"
        found = f"{what}, but the library {module} is not installed"
        check.problem(path, found, "the library that reads it", f"{command}, {note}" if note else command)
