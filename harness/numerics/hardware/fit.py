"""Looks up kernels for the modules of a model, and for its KV cache, in the table of kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from harness.numerics.hardware.profiles import CacheKernel, Kernel, profiles
from harness.records import CacheFormat, Identity, ModuleFormat, Note, NumberFormat

_MOST = 3
"""How many formats and kernels a sentence names; the rest are counted."""

_NOT_ASKED: Mapping[str, object] = {"scales": "", "ranges": "", "percentile": None, "act_order": False}
"""The properties of weight formats that distinguish kernels."""


@dataclass(frozen=True)
class Use:
    """How a module computes: the format of its weight, and the format to which its input is rounded, if any."""

    weights: NumberFormat
    inputs: NumberFormat | None = None

    @classmethod
    def of(cls, weights: NumberFormat, inputs: NumberFormat | None = None) -> Use:
        """The use without properties that no kernel depends on."""
        return cls(weights.model_copy(update=_NOT_ASKED), inputs)

    def __str__(self) -> str:
        return f"{self.weights}" + (f" with {self.inputs} inputs" if self.inputs else "")


@dataclass
class Fit:
    """Number of weights (parameters) of compressed modules on a target, by whether they have a kernel.

    missing and unknown name the modules of each format without a kernel, and of each format without known details.
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
    """The kernels on ``target`` that compute a module in this use, in the order of the table.

    any_inputs: ignore the input format.
    """
    fitting = [kernel for kernel in _kernels(target) if _takes_weights(kernel, use)]
    return [kernel for kernel in fitting if any_inputs or _takes_inputs(kernel, use)]


def fit(target: str, modules: Iterable[tuple[str, int, Use]]) -> Fit:
    """Look up every compressed module, given as (name, parameters, use)."""
    result = Fit(target)
    for name, parameters, use in modules:
        result.modules += 1
        result.total += parameters
        if use.weights.granularity == "none" and not use.weights.full_precision:
            result.unknown.setdefault(use, []).append(name)
            continue
        kernels = kernels_for(target, use)
        if not kernels:
            result.missing.setdefault(use, []).append(name)
            continue
        result.supported += parameters
        result.accelerated += parameters if any(kernel.arithmetic for kernel in kernels) else 0
        for kernel in kernels:
            result.kernels[kernel.name] = result.kernels.get(kernel.name, 0) + 1
    return result


def list_compressed(modules: Iterable[ModuleFormat]) -> list[tuple[str, int, Use]]:
    """The modules that compression changed, in the form that `fit` takes."""
    return [
        (each.module, each.parameters, Use.of(each.format, each.activations))
        for each in modules
        if needs_kernel(each.format, each.backend, each.activations)
    ]


def explain_missing(target: str, use: Use) -> str:
    """Why there is no kernel: the kernels that exist for the same weight format, or that there are none."""
    name = use.weights.name
    near = [kernel for kernel in _kernels(target) if name in kernel.weights.formats]
    if not near:
        return f"no kernel for {name} weights on {target} is known"
    shown = "; ".join(f"{kernel.name} takes {_describe(kernel, name)}" for kernel in near[:_MOST])
    return shown + (f"; and {len(near) - _MOST} more" if len(near) > _MOST else "")


def cache_kernel(target: str, cache: CacheFormat) -> CacheKernel | None:
    """A kernel on ``target`` that reads the KV cache in its stored format: all of it, in formats without scales."""
    parts = (cache.keys, cache.values)
    whole = not cache.residual and not cache.skipped_layers and all(part.scales == "none" for part in parts)
    for kernel in profiles().caches:
        if whole and target in kernel.targets and all(part.name in kernel.formats for part in parts):
            return kernel
    return None


def explain_no_cache_kernel(target: str, cache: CacheFormat) -> str:
    """The KV cache formats that have a kernel instead."""
    there = [
        f"{kernel.name}: {_join(kernel.formats)} without scales"
        for kernel in profiles().caches
        if target in kernel.targets
    ]
    return f"{target}: a KV cache with {cache} has no known kernel (available: {'; '.join(there) or 'none'})"


def notes(target: str, identity: Identity) -> list[Note]:
    """Notes about a compressed model that is meant for ``target``."""
    found = fit(target, list_compressed(identity.modules))
    said = [_note(text) for text in sentences(found)]
    if found.modules and not said:
        which = ", ".join(islice(found.kernels, _MOST))
        text = f"all {found.modules} compressed modules have a kernel ({which}); {_gain(found)}"
        said.append(Note(topic="hardware", text=f"{target}: {text}"))
    if identity.cache and not cache_kernel(target, identity.cache):
        said.append(_note(explain_no_cache_kernel(target, identity.cache)))
    return said


def sentences(found: Fit) -> list[str]:
    """One sentence per format without a kernel or without known details."""
    lines = [
        f"{found.target}: {use} has no kernel ({_count_modules(names)}): {explain_missing(found.target, use)}"
        for use, names in islice(found.missing.items(), _MOST)
    ]
    lines += [
        f"{found.target}: {_count_modules(names)} are prequantized as {use.weights.name}, whose details are unknown"
        for use, names in islice(found.unknown.items(), _MOST)
    ]
    hidden = len(found.missing) + len(found.unknown) - len(lines)
    return [*lines, f"{found.target}: {hidden} more formats have no known kernel"] if hidden else lines


def needs_kernel(weights: NumberFormat, backend: str, inputs: NumberFormat | None) -> bool:
    """Whether a module needs a special kernel: its weight or its input is not in plain floats."""
    return inputs is not None or (bool(backend) and not weights.full_precision)


def _kernels(target: str) -> list[Kernel]:
    return [kernel for kernel in profiles().kernels if target in kernel.targets]


def _takes_weights(kernel: Kernel, use: Use) -> bool:
    taken, given = kernel.weights, use.weights
    sized = given.granularity not in ("group", "block") or given.group_size in taken.group_sizes
    grid = taken.symmetric is None or taken.symmetric == given.symmetric
    return given.name in taken.formats and given.granularity in taken.granularities and sized and grid


def _takes_inputs(kernel: Kernel, use: Use) -> bool:
    taken, given = kernel.activations, use.inputs
    if taken is None or given is None:
        return taken is None and given is None
    known = given.name in taken.formats and given.granularity in taken.granularities
    return known and (given.outliers is not None) == taken.outliers


def _describe(kernel: Kernel, weights: str) -> str:
    """The formats a kernel supports, in words: "int4 per channel or in groups of 32, 64 or 128"."""
    grid: Mapping[bool | None, str] = {True: "symmetric ", False: "asymmetric ", None: ""}
    shared = [f"per {each}" for each in kernel.weights.granularities if each not in ("group", "block")]
    if sizes := kernel.weights.group_sizes:
        shared.append(f"in groups of {_join(map(str, sizes))}")
    text = f"{grid[kernel.weights.symmetric]}{weights} {_join(shared)}"
    if kernel.activations:
        per = _join(kernel.activations.granularities)
        left = ", outliers in full precision" if kernel.activations.outliers else ""
        return f"{text} with {_join(kernel.activations.formats)} inputs per {per}{left}"
    return f"{text} with inputs in floating point"


def _gain(found: Fit) -> str:
    """The expected speed-up of the kernels."""
    if not found.accelerated:
        return "less memory is read, but products are not computed in low precision: long prompts do not get faster"
    share = "all" if found.accelerated == found.total else f"{100 * found.accelerated / found.total:.0f} %"
    return f"products with {share} of the compressed weights are computed in low precision"


def _count_modules(modules: list[str]) -> str:
    return modules[0] if len(modules) == 1 else f"{len(modules)} modules, {modules[0]} first"


def _join(texts: Iterable[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} or {last}" if first else last


def _note(text: str) -> Note:
    return Note(topic="hardware", text=text, level="warn")
