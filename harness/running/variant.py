"""Makes a variant: opens a checkpoint or copies the reference, applies its adapter and every backend step in order.

reference ─▶ copy ─┐
checkpoint ────────┴▶ merged adapter ─▶ backend steps ─▶ attached adapter ─▶ LoadedModel
                                             └ adapter of a step ─┘
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.backends import Backend, Compressed, Materials
from harness.errors import BackendError, HarnessError
from harness.models.adapters import attach_adapter, merge_adapter
from harness.models.identity import identify
from harness.models.loaded import LoadedModel, freeze
from harness.models.sanity import check_placement, find_ragged_groups
from harness.modules.activations import check_declared, input_roundings
from harness.modules.experts import stacks
from harness.modules.file_dtypes import keep_file_dtypes
from harness.modules.grid_check import check_grids
from harness.modules.inspection import module_formats
from harness.modules.kernels import inspect_kernels, note_skipped_experts, note_unpacked
from harness.modules.non_finite import find_non_finite, note_non_finite
from harness.planning.specs import Plan
from harness.records import CacheFormat, ModuleFormat, Note, NumberFormat
from harness.running.step_use import StepWork, check_steps_act
from harness.system.foreign import LONG, guard
from harness.training.data import Training


def make_variant(
    plan: Plan, reference: LoadedModel, calibration: Sequence[Tensor], training: Training | None = None
) -> LoadedModel:
    """Make the variant of ``plan``: its own checkpoint or a copy of ``reference``, with its adapter and every step
    applied.

    calibration: token ids, one 1-D int64 tensor per document. training: for steps that train. The reference stays
    unchanged, byte for byte. Raises ModelError as ``load`` does, and BackendError naming the step that failed.
    """
    made, variant = _open_start(plan, reference), plan.variant
    if variant.adapter and variant.merge:
        made = merge_adapter(made, Path(variant.adapter))
    beside = Path(variant.adapter) if variant.adapter and not variant.merge else None
    if variant.compress:
        made, beside = _apply_steps(plan, made, reference, Materials(calibration, training), beside)
    if beside:
        made = attach_adapter(made, beside)
    return made if variant.layers is None else replace(made, layers=variant.layers)


def _apply_steps(
    plan: Plan, start: LoadedModel, reference: LoadedModel, materials: Materials, adapter: Path | None
) -> tuple[LoadedModel, Path | None]:
    """Apply every step to ``start``. Returns the folder of the adapter to be attached then, too: ``adapter``, or that
    of a step."""
    _check_tokenizer(plan, start, reference)
    model = start.model
    described = {module.module: module for module in start.identity.modules if module.backend}
    activations: dict[str, NumberFormat] = {}
    works: list[StepWork] = []
    cache, notes = start.identity.cache, list(start.notes)
    layers: tuple[int, ...] | None = None
    remade = False
    for step in plan.variant.compress:
        done = _apply_step(step, model, start.tokenizer, materials)
        _check_not_quantized_twice(step, done, described, activations, cache)
        _check_one_adapter(step, done, adapter)
        model, cache, adapter = done.model, done.cache or cache, done.adapter or adapter
        described |= {module.module: module for module in done.modules}
        activations |= done.activations
        notes += done.notes
        layers, remade = _compose(layers, done.layers), remade or done.remade
        works.append(StepWork.of(step, done))
    freeze(model)
    check_placement(model, plan.name, start.identity.device)
    present = {name for name, _ in model.named_modules()} | {name for name, _, _ in stacks(model)}
    if gone := sorted((described.keys() | activations.keys()) - present):
        raise BackendError(f"a step described {gone[0]}, which the compressed model does not have")
    check_declared(model, activations)
    check_steps_act(model, reference.model if plan.variant.model == "reference" else None, works)
    old = start.identity
    counts = check_grids(model, described)
    described |= {name: described[name].model_copy(update={"distinct_values": n}) for name, n in counts.items()}
    stated = tuple(
        module.model_copy(update=_describe_rounding(model, module, activations[module.module]))
        if module.module in activations
        else module
        for module in keep_file_dtypes(module_formats(model, described), start.identity.modules)
    )
    modules = inspect_kernels(model, stated)
    notes += [*note_unpacked(stated, modules), *note_skipped_experts(plan.name, modules, model)]
    identity = identify(plan.name, model, start.tokenizer, old.source, old.revision, old.dtype, old.device, modules)
    kept = {"cache": cache, "beside_sha256": old.beside_sha256}
    identity = identity.model_copy(update=kept if remade else kept | {"parameters": old.parameters})
    non_finite = find_non_finite(model)
    notes += [*_note_ragged_groups(plan.name, model, described), *note_non_finite(plan.name, non_finite)]
    compressed = start.with_modules(plan.name, model)
    found = replace(compressed, identity=identity, notes=tuple(notes), non_finite=non_finite, layers=layers)
    return found, adapter


def _compose(before: tuple[int, ...] | None, kept: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The layers of the first model that are left, after a step that kept some of those that were left ``before``."""
    if before is None or kept is None:
        return kept if before is None else before
    return tuple(before[layer] for layer in kept)


def _describe_rounding(model: nn.Module, stated: ModuleFormat, inputs: NumberFormat) -> dict[str, object]:
    """Fields of a module whose input is rounded: real only if a backend's kernel does it."""
    real = stated.backend and stated.kernel == "real" and not input_roundings(model.get_submodule(stated.module))
    return {"activations": inputs, "kernel": "real" if real else "simulated"}


def _open_start(plan: Plan, reference: LoadedModel) -> LoadedModel:
    """The input of the first backend step: a copy of the reference, or the variant's own checkpoint."""
    variant = plan.variant
    if variant.model == "reference":
        identity = reference.identity.model_copy(update={"name": plan.name})
        lends = not variant.adapter and not any(step.writes_in_place for step in variant.compress)
        copied = copy.deepcopy(reference.model, lend_parameters(reference.model) if lends else {})
        start = reference.with_modules(plan.name, copied)
        return replace(start, identity=identity, notes=())
    spec = plan.reference.model_copy(
        update={
            "model": variant.model,
            "file": variant.file,
            "revision": variant.revision,
            "dtype": variant.dtype or reference.identity.dtype,
            "trust_remote_code": variant.trust_remote_code,
        }
    )
    tokenizer = reference.tokenizer if variant.tokenizer == "reference" else None
    with guard(f"the engine {variant.engine.kind}", patience=LONG):
        return variant.engine.open(spec, plan.name, tokenizer)


def lend_parameters(model: nn.Module) -> dict[int, nn.Parameter]:
    """For ``copy.deepcopy``: parameters with the memory of ``model``'s, by the id of those; stacks of experts, into
    which every step writes, are left out."""
    written = {id(module._parameters[name]) for _, module, name in stacks(model)}
    plain = (each for each in model.parameters() if type(each) is nn.Parameter and id(each) not in written)
    return {id(each): nn.Parameter(each.detach(), requires_grad=False) for each in plain}


def _check_tokenizer(plan: Plan, start: LoadedModel, reference: LoadedModel) -> None:
    """Raise BackendError if documents that steps need would be encoded with another tokenizer's ids."""
    needing = [step.kind for step in plan.variant.compress if step.reads_tokens]
    if needing and start.identity.tokenizer_sha256 != reference.identity.tokenizer_sha256:
        raise BackendError(
            f"{needing[0]}: its documents are encoded by the reference's tokenizer, and {plan.variant.model} has "
            "another tokenizer; give both sides the same tokenizer files, or choose a step that needs no documents"
        )


def _apply_step(
    step: Backend, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, materials: Materials
) -> Compressed:
    if step.calibrates and not materials.calibration:
        raise BackendError(f"{step.kind}: needs calibration documents; add a calibration: section to the variant")
    try:
        with guard(f"the backend {step.kind}", patience=LONG):
            return step.apply(model, tokenizer, materials)
    except HarnessError:
        raise
    except Exception as error:  # A library may raise anything; the user must learn which step it was.
        raise BackendError(f"{step.kind}: {type(error).__name__}: {error}") from error


def _check_not_quantized_twice(
    step: Backend,
    done: Compressed,
    described: Mapping[str, ModuleFormat],
    activations: Mapping[str, NumberFormat],
    cache: CacheFormat | None,
) -> None:
    """Raise BackendError if a step quantized what an earlier step had quantized: it would have neither format."""
    twice = [m.module for m in done.modules if m.module in described] or [
        name for name in done.activations if name in activations
    ]
    if twice:
        earlier = described[twice[0]].backend if twice[0] in described else "an earlier step"
        raise BackendError(
            f"{step.kind}: {twice[0]} was quantized by {earlier} already; give each step its modules with only: "
            "and skip:"
        )
    if done.cache and cache:
        raise BackendError(f"{step.kind}: the KV cache was quantized by {cache.backend} already")


def _check_one_adapter(step: Backend, done: Compressed, adapter: Path | None) -> None:
    """Raise BackendError if a step leaves an adapter beside the weights where there is one already."""
    if done.adapter and adapter:
        raise BackendError(
            f"{step.kind}: leaves an adapter beside the weights, and {adapter} is to be attached to them already; "
            "merge one of the two"
        )


def _note_ragged_groups(name: str, model: PreTrainedModel, described: dict[str, ModuleFormat]) -> tuple[Note, ...]:
    groups = {module: stated.format.group_size for module, stated in described.items() if stated.format.group_size}
    ragged = find_ragged_groups(model, groups)
    if not ragged:
        return ()
    example = f"{ragged[0]}, groups of {groups[ragged[0]]}"
    text = f"{name}: in {len(ragged)} modules the last group is shorter ({example})"
    return (Note(topic="ragged groups", text=text),)
