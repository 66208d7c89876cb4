"""Reads the entries ``reference`` and ``variant`` of a variant file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from harness.backends import Backend
from harness.engines import Engine
from harness.planning.checking import Checker
from harness.planning.checkpoints import check_checkpoint, check_gguf, join_adapter, join_file
from harness.planning.locating import find_model
from harness.planning.specs import VariantSpec
from harness.plugins import names
from harness.records import ModelSpec
from harness.records.plan import GGUF
from harness.system.yaml_values import KeyPath, describe

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DEVICE = re.compile(r"cpu|mps|(cuda|xpu)(:\d{1,3})?")


def read_reference(check: Checker, value: Any) -> ModelSpec | None:
    """The reference; None and problems if something is wrong."""
    path: KeyPath = ("reference",)
    value = _resolve_model(check, value, path, ("pocket",))
    spec = check.record(ModelSpec, value, path)
    if spec is None:
        return None
    if spec.file is not None or spec.model.endswith(GGUF):
        check_gguf(check, (*path, "model"))
    if not _DEVICE.fullmatch(spec.device):
        check.problem((*path, "device"), repr(spec.device), "cpu, cuda, cuda:<number>, mps or xpu")
    return spec


def read_steps(check: Checker, variant: Any) -> dict[int, Backend]:
    """The steps of ``variant.compress`` by position, without those that have problems."""
    value = variant.get("compress", ()) if isinstance(variant, Mapping) else ()
    path: KeyPath = ("variant", "compress")
    if not isinstance(value, tuple):
        check.problem(path, describe(value), "a list of backend steps")
        return {}
    steps = {i: check.plugin(Backend, step, (*path, i)) for i, step in enumerate(value)}
    return {index: step for index, step in steps.items() if step is not None}


def read_variant(
    check: Checker, value: Any, steps: Iterable[Backend], reference: ModelSpec | None
) -> VariantSpec | None:
    """The variant with its steps (see `read_steps`); None and problems if something else is wrong."""
    path: KeyPath = ("variant",)
    given, made = value, tuple(steps)
    value = _resolve_model(check, value, path, ("reference", "pocket"))
    if isinstance(value, Mapping):
        value = _read_engine(check, {**join_adapter(check, value, path), "compress": made}, path)
    spec = check.record(VariantSpec, value, path)
    if spec:
        check_checkpoint(check, given, spec, made, reference)
    if spec and spec.layers is not None:
        _check_layers(check, spec, (*path, "layers"))
    return spec


def _check_layers(check: Checker, spec: VariantSpec, path: KeyPath) -> None:
    """Note problems of a map of layers that show before the models are opened."""
    named = [layer for layer in spec.layers or () if layer is not None]
    if spec.model == "reference":
        check.problem(path, "a map of layers", "none: the variant is the reference and has the same layers")
    elif twice := next((layer for layer in named if named.count(layer) > 1), None):
        expected = f"each layer of the reference once, and null where {twice} is named again"
        check.problem(path, f"layer {twice} named {named.count(twice)} times", expected)
    elif not named:
        check.problem(path, "null for every layer", "at least one layer of the reference")


def _read_engine(check: Checker, value: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
    """The entry with its engine constructed: from a name, or from a mapping with settings. Notes problems."""
    entry, place = dict(value), (*path, "engine")
    if "engine" not in entry:
        return entry
    written = entry.pop("engine")
    if not isinstance(written, str | Mapping):
        check.problem(place, describe(written), f"the name of an engine: {', '.join(names(Engine))}")
        return entry
    engine = check.plugin(Engine, written, place)
    return entry if engine is None else entry | {"engine": engine}


def _resolve_model(check: Checker, value: Any, path: KeyPath, reserved: tuple[str, ...]) -> Any:
    """The entry with its model resolved, after checking keys that only apply to some kinds of model."""
    if not isinstance(value, Mapping):
        return value
    given = value.get("model", reserved[0] if reserved[0] == "reference" else None)
    if not isinstance(given, str) or not given:
        return value
    model, kind = find_model(check, given, (*path, "model"), reserved)
    revision, trusted = value.get("revision"), value.get("trust_remote_code") is True
    if kind != "hub" and revision is not None:
        check.problem((*path, "revision"), describe(revision), f"no revision: {given!r} is not on the hub")
    if kind == "reserved" and trusted:
        check.problem((*path, "trust_remote_code"), "true", f"false: {given!r} contains no code")
    if kind == "hub" and trusted and not (isinstance(revision, str) and _COMMIT.fullmatch(revision)):
        expected = "the commit (40 hex digits) whose code is trusted"
        check.problem((*path, "revision"), describe(revision), expected)
    return join_file(check, value, path, model, kind)
