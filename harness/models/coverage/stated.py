"""The quantization config of a folder against what its files hold: which layers are in the stated format.

    linear layers ─▶ of those the config speaks of ─▶ less those that it names as left plain ─▶ n of m are quantized

What a config speaks of differs by method: compressed-tensors names its targets; MXFP4 is for stacks of experts; all
others quantize the linear layers of the decoder blocks. Routers stay plain in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from harness.errors import BackendError
from harness.models.loaded import LoadedModel
from harness.modules.decoder_layers import decoder_blocks
from harness.modules.experts import stacks
from harness.modules.non_finite import format_units
from harness.records import ModuleFormat, Note

_LEFT_PLAIN = (
    "modules_to_not_convert",
    "ignore",
    "ignored_layers",
    "llm_int8_skip_modules",
    "skip_modules",
    "exclude",
)
"""Keys of quantization configs that list modules which keep their floats."""
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Keys of model configs with the number of experts: as many outputs as a router has."""
_MOST = 4


@dataclass(frozen=True)
class Stated:
    """The layers that a quantization config speaks of, by what the files hold."""

    quantized: tuple[ModuleFormat, ...]
    plain: tuple[ModuleFormat, ...]

    @property
    def total(self) -> int:
        """How many layers the config speaks of."""
        return len(self.quantized) + len(self.plain)

    @property
    def plain_share(self) -> float:
        """Share of the parameters of these layers that are plain floats."""
        sizes = [sum(module.parameters for module in part) for part in (self.plain, self.quantized)]
        return sizes[0] / max(1, sum(sizes))


def compare_with_config(loaded: LoadedModel) -> Stated | None:
    """The layers that the quantization config of a model's files speaks of; None if the files have none."""
    said = loaded.quantization
    if not said or loaded.language_model.modules is None:
        return None
    stacked = {name for name, _, _ in stacks(loaded.model)}
    blocks = _find_blocks(loaded)
    meant = [module for module in loaded.identity.modules if _is_meant(loaded, module, stacked, blocks)]
    return Stated(
        tuple(module for module in meant if module.compressed),
        tuple(module for module in meant if not module.compressed),
    )


def note_plain_layers(loaded: LoadedModel) -> Iterator[Note]:
    """A warning if layers are plain floats although the config of their folder says that they are quantized."""
    stated = compare_with_config(loaded)
    if stated is None or not stated.plain:
        return
    text = (
        f"{loaded.name}: {len(stated.quantized)} of {stated.total} linear layers are in the format that config.json "
        f"states ({describe_formats(stated.quantized) or loaded.quantization.get('quant_method')}); not quantized, "
        f"with {stated.plain_share:.0%} of their weights, and not named there as left plain: "
        f"{describe_layers([module.module for module in stated.plain])}"
    )
    yield Note(topic="quantization coverage", text=text, level="warn")


def note_quantized_reference(reference: LoadedModel) -> Iterator[Note]:
    """What losses are counted from, if the reference was released quantized."""
    layers = [module for module in reference.identity.modules if module.role in ("linear", "head")]
    quantized = [module for module in layers if module.compressed]
    if quantized:
        text = (
            f"{reference.name}: the reference is itself quantized: {len(quantized)} of {len(layers)} linear layers "
            f"hold {describe_formats(quantized)}; losses are counted from these weights, not from a model in full "
            "precision"
        )
        yield Note(topic="quantized reference", text=text, level="warn")


def describe_formats(modules: Sequence[ModuleFormat]) -> str:
    """The formats of modules, most frequent first: "gptq, int4 in groups of 32"."""
    named = [", ".join(filter(None, (module.backend, str(module.format)))) for module in modules]
    return "; ".join(sorted(dict.fromkeys(named), key=named.count, reverse=True))


def describe_layers(names: Sequence[str]) -> str:
    """Names of layers, those of one kind together: "model.layers.*.mlp.up_proj, blocks 1–3"."""
    blocks: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"\.(\d+)\.", name)
        pattern = name if number is None else f"{name[: number.start()]}.*.{name[number.end() :]}"
        blocks.setdefault(pattern, []).extend([] if number is None else [int(number[1])])
    texts = [
        f"{pattern}, {format_units('block', sorted(numbers))}" if numbers else pattern
        for pattern, numbers in blocks.items()
    ]
    rest = f"; and {len(texts) - _MOST} more kinds" if len(texts) > _MOST else ""
    return "; ".join(texts[:_MOST]) + rest


def _is_meant(loaded: LoadedModel, module: ModuleFormat, stacked: Set[str], blocks: str | None) -> bool:
    """Whether the config says that a layer is quantized. stacked: names of stacks; blocks: of the decoder blocks."""
    said, name = loaded.quantization, module.module
    if module.role != "linear" or _stays_plain(said, name):
        return False
    if module.compressed:
        return True
    if said.get("quant_method") == "mxfp4":
        return name in stacked
    if said.get("quant_method") == "compressed-tensors":
        groups = (said.get("config_groups") or {}).values()
        targets = [target for group in groups if isinstance(group, dict) for target in group.get("targets") or ()]
        return module.type in targets or any(_names(target, name) for target in targets)
    in_block = blocks is not None and name.startswith(f"{blocks}.")
    return in_block and (name in stacked or not _is_router(loaded, name))


def _stays_plain(said: Mapping[str, Any], name: str) -> bool:
    """Whether a config names a layer, or a module around it, as left in full precision."""
    listed = [pattern for key in _LEFT_PLAIN for pattern in said.get(key) or ()]
    dynamic = [pattern.removeprefix("-:") for pattern in said.get("dynamic") or () if pattern.startswith("-:")]
    own = [key for key, each in (said.get("extra_config") or {}).items() if (each.get("bits") or 0) >= 16]
    chosen = [part for parts in said.get("modules_in_block_to_quantize") or () for part in _as_list(parts)]
    return (
        any(isinstance(pattern, str) and _names(pattern, name) for pattern in (*listed, *own))
        or any(_matches(pattern, name) for pattern in dynamic)
        or bool(chosen and not any(name.endswith(f".{part}") for part in chosen))
    )


def _names(pattern: str, name: str) -> bool:
    """Whether a pattern of a config names a layer or a module around it: ``re:…``, with ``*``, or parts of the path."""
    if pattern.startswith("re:"):
        return _matches(pattern.removeprefix("re:"), name)
    if "*" in pattern:
        return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") or fnmatchcase(name, f"*.{pattern}")
    return f".{pattern}." in f".{name}."


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.match(pattern, name) is not None
    except re.error:
        return False


def _as_list(parts: Any) -> list[str]:
    return [parts] if isinstance(parts, str) else list(parts)


def _find_blocks(loaded: LoadedModel) -> str | None:
    """Name of the list of decoder blocks; None if there is none."""
    try:
        return decoder_blocks(loaded.model)[0]
    except BackendError:
        return None


def _is_router(loaded: LoadedModel, name: str) -> bool:
    """Whether a layer has an output for every expert, or a single one (the gate of a shared expert)."""
    config = loaded.model.config.get_text_config()
    counts = {getattr(config, key, None) for key in _COUNTS} | {1}
    return getattr(loaded.model.get_submodule(name), "out_features", None) in counts
