"""What the table of kernels says about the modules of a model, and about its KV cache."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from harness.hardware.profiles import CacheKernel, Kernel, profiles
from harness.records import CacheFormat, Identity, ModuleFormat, Note

_MOST = 3
"""Formats and kernels that a sentence names; the rest are counted."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")

# "int8 per token, dynamic": every word has to be known, for with an addition it would be another kernel.
_INPUTS = re.compile(
    r"(?P<format>[a-z]+[0-9]+(_[a-z0-9]+)?)( asymmetric)?"
    r"( per (?P<granularity>tensor|token|channel)|(?P<groups> in groups of [0-9]+))?"
    r"(, (dynamic|static( \([a-z0-9_. ]+\))?))?"
    r"(?P<outliers>; columns with \|x\| >= [0-9.]+ in full precision)?"
)


@dataclass(frozen=True)
class Use:
    """How a module computes: the format of its weight and what happens to its input (empty: nothing)."""

    format: str
    granularity: str
    group_size: int | None = None
    symmetric: bool | None = None
    activations: str = ""

    def __str__(self) -> str:
        kind = "asymmetric " if self.symmetric is False else ""
        shared = {"group": f"in groups of {self.group_size}", "block": f"in blocks of {self.group_size}"}
        where = shared.get(self.granularity, f"per {self.granularity}")
        return f"{kind}{self.format} {where}" + (f" with {self.activations} inputs" if self.activations else "")


@dataclass
class Fit:
    """Weights (parameters) of compressed modules on a target, by what the table says about them.

    missing and unknown name the modules of each format without a kernel, and of each whose details are not known.
    """

    target: str
    total: int = 0
    supported: int = 0
    accelerated: int = 0
    modules: int = 0
    kernels: dict[str, int] = field(default_factory=dict)
    missing: dict[Use, list[str]] = field(default_factory=dict)
    unknown: dict[Use, list[str]] = field(default_factory=dict)


def kernels_for(target: str, use: Use, any_inputs: bool = False) -> list[Kernel]:
    """The kernels on ``target`` that compute a module so, in the order of the table.

    any_inputs: whatever happens to its input.
    """
    fitting = [kernel for kernel in _kernels(target) if _takes_weights(kernel, use)]
    return [kernel for kernel in fitting if any_inputs or _takes_inputs(kernel, use)]


def fit(target: str, modules: Iterable[tuple[str, int, Use]]) -> Fit:
    """Look up every compressed module, given as (name, parameters, use)."""
    result = Fit(target)
    for name, parameters, use in modules:
        result.modules += 1
        result.total += parameters
        if use.granularity == "none" and use.format not in _FLOATS:
            result.unknown.setdefault(use, []).append(name)
            continue
        found = kernels_for(target, use)
        if not found:
            result.missing.setdefault(use, []).append(name)
            continue
        result.supported += parameters
        result.accelerated += parameters if any(kernel.arithmetic for kernel in found) else 0
        for kernel in found:
            result.kernels[kernel.name] = result.kernels.get(kernel.name, 0) + 1
    return result


def compressed(modules: Iterable[ModuleFormat]) -> list[tuple[str, int, Use]]:
    """The modules that compression touched, as `fit` takes them."""
    return [
        (m.module, m.parameters, Use(m.format, m.granularity, m.group_size, m.symmetric, m.activations))
        for m in modules
        if is_compressed(m.format, m.backend, m.activations)
    ]


def why_missing(target: str, use: Use) -> str:
    """Why there is no kernel: what is there for the same format of weights, or that there is nothing."""
    near = [kernel for kernel in _kernels(target) if use.format in kernel.weights.formats]
    if not near:
        return f"no kernel for {use.format} weights on {target} is known"
    shown = "; ".join(f"{kernel.name} takes {_taken(kernel, use.format)}" for kernel in near[:_MOST])
    return shown + (f"; and {len(near) - _MOST} more" if len(near) > _MOST else "")


def cache_text(cache: CacheFormat) -> str:
    """How keys and values are kept, in one line."""
    newest = f"; the newest {cache.residual} tokens in full precision" if cache.residual else ""
    return f"keys {cache.keys}; values {cache.values}{newest}"


def cache_kernel(target: str, text: str) -> CacheKernel | None:
    """A kernel on ``target`` that reads a KV cache which is kept so (see `cache_text`)."""
    for kernel in profiles().caches:
        kept = (f"keys {keys}; values {values}" for keys in kernel.formats for values in kernel.formats)
        if target in kernel.targets and text in kept:
            return kernel
    return None


def why_no_cache_kernel(target: str, text: str) -> str:
    """What is there instead."""
    there = [f"{kernel.name}: {_listed(kernel.formats)}" for kernel in profiles().caches if target in kernel.targets]
    return f"{target}: a KV cache with {text} has no known kernel (there is {'; '.join(there) or 'none'})"


def notes(target: str, identity: Identity) -> list[Note]:
    """What a reader must know about a compressed model that is meant for ``target``."""
    found = fit(target, compressed(identity.modules))
    said = [_note(text) for text in sentences(found)]
    if found.modules and not said:
        which = ", ".join(islice(found.kernels, _MOST))
        text = f"all {found.modules} compressed modules have a kernel ({which}); {_gain(found)}"
        said.append(Note(topic="hardware", text=f"{target}: {text}"))
    if identity.cache and not cache_kernel(target, text := cache_text(identity.cache)):
        said.append(_note(why_no_cache_kernel(target, text)))
    return said


def sentences(found: Fit) -> list[str]:
    """One sentence for every format without a kernel or without known details."""
    lines = [
        f"{found.target}: {use} has no kernel ({_which(names)}): {why_missing(found.target, use)}"
        for use, names in islice(found.missing.items(), _MOST)
    ]
    lines += [
        f"{found.target}: {_which(names)} came quantized ({use.format}), in a format that is not known in detail"
        for use, names in islice(found.unknown.items(), _MOST)
    ]
    hidden = len(found.missing) + len(found.unknown) - len(lines)
    return [*lines, f"{found.target}: {hidden} more formats have no known kernel"] if hidden else lines


def is_compressed(name: str, backend: str, activations: str) -> bool:
    """Whether a module needs a kernel of its own: its weight or its input is in another format than floating point."""
    return bool(activations) or (bool(backend) and name not in _FLOATS)


def _kernels(target: str) -> list[Kernel]:
    return [kernel for kernel in profiles().kernels if target in kernel.targets]


def _takes_weights(kernel: Kernel, use: Use) -> bool:
    weights = kernel.weights
    sized = use.granularity not in ("group", "block") or use.group_size in weights.group_sizes
    grid = weights.symmetric is None or weights.symmetric == use.symmetric
    return use.format in weights.formats and use.granularity in weights.granularities and sized and grid


def _takes_inputs(kernel: Kernel, use: Use) -> bool:
    if kernel.activations is None or not use.activations:
        return kernel.activations is None and not use.activations
    inputs, taken = _INPUTS.fullmatch(use.activations), kernel.activations
    if inputs is None:
        return False
    granularity = "group" if inputs["groups"] else inputs["granularity"]
    known = inputs["format"] in taken.formats and granularity in taken.granularities
    return known and bool(inputs["outliers"]) == taken.outliers


def _taken(kernel: Kernel, weights: str) -> str:
    """What a kernel takes, in words: "int4 per channel or in groups of 32, 64 or 128"."""
    grid: Mapping[bool | None, str] = {True: "symmetric ", False: "asymmetric ", None: ""}
    shared = [f"per {each}" for each in kernel.weights.granularities if each not in ("group", "block")]
    if sizes := kernel.weights.group_sizes:
        shared.append(f"in groups of {_listed(map(str, sizes))}")
    text = f"{grid[kernel.weights.symmetric]}{weights} {_listed(shared)}"
    if kernel.activations:
        per = _listed(kernel.activations.granularities)
        left = ", outliers in full precision" if kernel.activations.outliers else ""
        return f"{text} with {_listed(kernel.activations.formats)} inputs per {per}{left}"
    return f"{text} with inputs in floating point"


def _gain(found: Fit) -> str:
    """What the kernels make faster."""
    if not found.accelerated:
        return "less is read from memory, but products are not computed in few bits: long prompts do not get faster"
    share = "all" if found.accelerated == found.total else f"{100 * found.accelerated / found.total:.0f} %"
    return f"products with {share} of the compressed weights are computed in few bits"


def _which(modules: list[str]) -> str:
    return modules[0] if len(modules) == 1 else f"{len(modules)} modules, {modules[0]} first"


def _listed(texts: Iterable[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} or {last}" if first else last


def _note(text: str) -> Note:
    return Note(topic="hardware", text=text, level="warn")
