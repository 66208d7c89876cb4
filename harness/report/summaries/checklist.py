"""The deployment checklist: what was compressed and how, from the finished model and its measurements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.records import Measurement, ModuleFormat, Run
from harness.report import display, words

_REASONS = {
    "embedding": "embeddings are looked up, not multiplied",
    "norm": "norms are small and sensitive",
    "head": "the output head was skipped",
    "linear": "linear layers that no step selected",
    "other": "other tensors",
}


@dataclass(frozen=True)
class ChecklistLine:
    """One line of the checklist. known: the source of the answer."""

    question: str
    found: tuple[str, ...]
    known: str


@dataclass(frozen=True)
class ModuleGroup:
    """All modules whose weights and inputs are quantized alike."""

    words: str
    details: tuple[str, ...]
    names: tuple[str, ...]
    parameters: int
    stored_bytes: int

    @property
    def example(self) -> str:
        """The first of the modules."""
        return self.names[0]


def answers(run: Run) -> list[ChecklistLine]:
    """The checklist, top to bottom."""
    modules = run.variant.modules
    return [
        _weights(modules),
        _activations(modules),
        _cache(run),
        _calibration(run),
        *_training(run),
        _answer_excluded(modules),
        _kernel(modules, run),
        _answer_storage(modules),
        ChecklistLine(
            "Quality",
            tuple(_numbers(run, words.list_summaries(run, "quality"))) or ("not measured",),
            "measured on the same documents",
        ),
        _latency(run),
    ]


def groups(modules: Sequence[ModuleFormat]) -> list[ModuleGroup]:
    """Compressed modules and those with rounded inputs, one group for each distinct treatment, the largest first."""
    alike: dict[tuple[str, tuple[str, ...]], list[ModuleFormat]] = {}
    for module in modules:
        if module.compressed or module.activations:
            alike.setdefault((words.describe_format(module), _details(module)), []).append(module)
    found = [_group(name, details, members) for (name, details), members in alike.items()]
    return sorted(found, key=lambda group: (-group.parameters, group.words, group.details))


def _group(name: str, details: tuple[str, ...], members: list[ModuleFormat]) -> ModuleGroup:
    counted = [module.distinct_values for module in members if module.distinct_values is not None]
    unit = members[0].format.granularity if members[0].format.granularity != "none" else "tensor"
    if counted:
        details = (*details, f"inspected: at most {max(counted)} distinct values in a {unit}")
    elif members[0].compressed:
        details = (*details, "distinct values not counted")
    return ModuleGroup(
        words=name,
        details=details,
        names=tuple(module.module for module in members),
        parameters=sum(module.parameters for module in members),
        stored_bytes=sum(module.stored_bytes for module in members),
    )


def _details(module: ModuleFormat) -> tuple[str, ...]:
    parts = [
        {True: "symmetric", False: "asymmetric", None: ""}[module.format.symmetric],
        *_ranges(module),
        f"inputs {module.activations}" if module.activations else "",
        f"by {module.backend}" if module.backend else "",
    ]
    return tuple(part for part in parts if part)


def _ranges(module: ModuleFormat) -> tuple[str, ...]:
    method = module.format.range_method.replace("_", " ")
    return (f"ranges by {method}",) if method else ()


def _weights(modules: Sequence[ModuleFormat]) -> ChecklistLine:
    chosen = [module for module in modules if module.compressed]
    if not chosen:
        return ChecklistLine("Weights", ("not quantized",), "no module has a compressed format")
    total = sum(module.parameters for module in modules)
    share = sum(module.parameters for module in chosen) / total if total else None
    formats = Counter(", ".join((words.describe_format(module), *_ranges(module))) for module in chosen)
    kept = [f"{count} modules {name}" for name, count in formats.most_common(6)]
    kept.append(f"{display.percent(share, 3)} of all parameters")
    inspected = sum(module.distinct_values is not None for module in chosen)
    known = "as declared by the step; distinct values were not counted"
    if inspected:
        known = f"the values of {inspected} of {len(chosen)} modules were inspected and lie on the declared grid"
    return ChecklistLine("Weights", tuple(kept), known)


def _activations(modules: Sequence[ModuleFormat]) -> ChecklistLine:
    kinds = Counter(str(module.activations) for module in modules if module.activations)
    inputs = tuple(f"inputs of {count} modules {name}" for name, count in kinds.most_common(6))
    return ChecklistLine("Activations", inputs or ("not quantized",), "hooks and kernels of the finished model")


def _cache(run: Run) -> ChecklistLine:
    cache = run.variant.cache
    if cache is None:
        return ChecklistLine("KV cache", ("not quantized",), "the cache of the finished model")
    details = [f"keys {cache.keys}, values {cache.values}", f"{display.number(cache.bits_per_value, 3)} bits per value"]
    if cache.residual:
        details.append(f"the newest {cache.residual} tokens in full precision")
    if cache.skipped_layers:
        details.append(f"layers {', '.join(map(str, cache.skipped_layers))} in full precision")
    return ChecklistLine("KV cache", tuple(details), f"{cache.kernel} kernel, by {cache.backend}")


def _calibration(run: Run) -> ChecklistLine:
    data = run.variant.calibration
    if data is None:
        return ChecklistLine("Calibration data", ("none",), "no step used calibration documents")
    details = [
        f"{data.source}: {display.number(data.documents)} documents, {display.number(data.tokens)} tokens",
        f"sha256 of the tokens {display.short_hash(data.sha256)}",
        *_numbers(run, ("calibration_data.overlap",)),
    ]
    divergence, floor = (words.find(run, f"calibration_data.token_divergence{end}") for end in ("", "_floor"))
    if divergence and divergence.change is not None:
        beside = f" (halves of the documents: {display.number(floor.change)})" if floor else ""
        details.append(f"divergence of tokens {display.quantity(divergence.change, divergence.unit)}{beside}")
    if worst := words.find(run, "calibration_data.outside_range_worst"):
        share, module = display.quantity(worst.change, worst.unit), worst.labels.get("module", "")
        details.append(f"inputs outside the calibrated range: up to {share}, in {module}")
    return ChecklistLine("Calibration data", tuple(details), "compared with the evaluation documents")


def _training(run: Run) -> Iterator[ChecklistLine]:
    """A line for a variant that a step trained."""
    data = run.variant.training
    if data is None:
        return
    details = [
        f"{data.source}: {display.number(data.documents)} texts, {display.number(data.tokens)} tokens; "
        f"{display.number(data.held_out)} held out",
        f"sha256 of the tokens {display.short_hash(data.sha256)}",
        *_numbers(run, ("training.overlap", "training.held_out_kl")),
    ]
    yield ChecklistLine("Training data", tuple(details), "compared with the evaluation documents")


def _answer_excluded(modules: Sequence[ModuleFormat]) -> ChecklistLine:
    left = [module for module in modules if not module.compressed]
    lines = []
    for role, reason in _REASONS.items():
        members = [module for module in left if module.role == role]
        if members:
            stored = sum(module.stored_bytes for module in members)
            size = display.size(stored) if stored else "stored with another module"
            lines.append(f"{len(members)} × {members[0].format.name}, {size}: {reason} ({members[0].module})")
    return ChecklistLine("Left out", tuple(lines) or ("nothing",), "every module of the finished model")


def _kernel(modules: Sequence[ModuleFormat], run: Run) -> ChecklistLine:
    kinds = Counter(module.kernel for module in modules if module.compressed or module.activations)
    if run.variant.cache:
        kinds[run.variant.cache.kernel] += 1
    if not kinds:
        return ChecklistLine("Kernel", ("that of the reference",), "nothing was quantized")
    if kinds["simulated"]:
        what = "simulated: the values are those of the format, held and multiplied as floats"
        return ChecklistLine("Kernel", (what,), "memory is counted by format; speed says nothing about the format")
    packed = [module for module in modules if module.compressed]
    if packed and all(module.gemm_kind == "floats" for module in packed):
        what = "real, weight-only: the kernel dequantizes the stored format and multiplies floats"
        return ChecklistLine("Kernel", (what,), "one call of every module was observed")
    return ChecklistLine("Kernel", ("real: the GEMM reads the stored format",), "the modules of the finished model")


def _answer_storage(modules: Sequence[ModuleFormat]) -> ChecklistLine:
    sizes: dict[str, int] = {}
    for module in modules:
        sizes[module.format.name] = sizes.get(module.format.name, 0) + module.stored_bytes
    largest = sorted((item for item in sizes.items() if item[1]), key=lambda item: (-item[1], item[0]))
    found = [f"{name} {display.size(size)}" for name, size in largest[:8]]
    whole = f"{display.size(sum(sizes.values()))} in all"
    return ChecklistLine(
        "Stored", (*found, whole) if found else ("not known",), "codes, scales and zero points, counted"
    )


def _latency(run: Run) -> ChecklistLine:
    names = words.list_summaries(run, "speed")
    reason = next((m.not_judged for m in run.measurements if m.name in names and m.not_judged), "")
    numbers = tuple(_numbers(run, names))
    if not numbers:
        return ChecklistLine("Latency", ("not measured",), "")
    return ChecklistLine(
        "Latency", numbers, f"not counted: {reason}" if reason else "measured together with the reference"
    )


def _numbers(run: Run, names: Sequence[str]) -> Iterator[str]:
    """The measurements of these names in words."""
    for name in names:
        m = words.find(run, name)
        if m is not None and m.non_finite is None:
            yield f"{words.metric(run, name)} {_format_measurement(run, m)}"


def _format_measurement(run: Run, m: Measurement) -> str:
    if m.reference is not None and m.variant is not None and run.metric(m.name).summary == "speed":
        return f"{display.quantity(m.variant, m.unit)}, reference {display.quantity(m.reference, m.unit)}"
    return display.quantity(m.change if m.change is not None else m.variant, m.unit)
