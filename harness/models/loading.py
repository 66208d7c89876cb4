"""Loading models and making variants of them.

    spec ─▶ folder ─▶ checked files ─▶ model ─▶ checked model ─▶ LoadedModel
                                                  reference ─▶ copy ─▶ backend steps ─▶ LoadedModel

Whatever could make the numbers belong to another model than the one that was asked for is a ModelError here,
before anything is measured. Global seeds and thread counts are left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from harness.backends import Backend, Compressed
from harness.errors import BackendError, HarnessError, ModelError
from harness.models.activations import check_stated
from harness.models.identity import identify
from harness.models.inspection import module_formats
from harness.models.levels import check_levels
from harness.models.prequantized import quantization_method
from harness.models.soundness import (
    check_loading,
    check_not_blank,
    check_placement,
    check_ready,
    non_finite,
    ragged_groups,
)
from harness.models.sources import Source, resolve
from harness.models.stamps import FileStamp, stamp_folder, verify_stamps
from harness.models.trust import check_folder
from harness.models.weight_files import Weights, check_no_hidden_codes, read_json
from harness.records import CacheFormat, Identity, ModelSpec, ModuleFormat, Note, Plan

if TYPE_CHECKING:
    from harness.models.calibration_data import Calibrated


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be measured: in eval mode, without gradients, with stamps of its files."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: Identity
    files: tuple[FileStamp, ...]
    notes: tuple[Note, ...] = ()
    calibration: Calibrated | None = None
    """What a variant was fitted to, where a step looked at documents."""


def load(spec: ModelSpec, name: str) -> LoadedModel:
    """Load ``spec`` and check it from the files to the finished model.

    Raises ModelError saying what was found and what to do (see ``trust``, ``soundness``),
    MissingDependencyError for a quantized checkpoint whose library is not installed.
    """
    _check_device(spec)
    source = resolve(spec)
    stamps = stamp_folder(source.folder)
    weights = check_folder(source.folder, stamps, spec.trust_remote_code, manifest=source.is_pocket)
    quantization = quantization_method(source.folder, read_json(source.folder / "config.json"))
    if not quantization:
        check_no_hidden_codes(source.folder, weights)
    model = _load_model(source.folder, spec)
    _freeze(model)
    check_ready(model, spec, quantization)
    check_not_blank(model, spec.model)
    tokenizer = _load_tokenizer(source.folder, spec)
    modules = module_formats(model, {}, quantization)
    identity = identify(name, model, tokenizer, spec.model, source.revision, spec.dtype, spec.device, modules)
    return LoadedModel(name, model, tokenizer, identity, stamps, _notes(spec, name, source, weights, model))


def make_variant(plan: Plan, reference: LoadedModel, calibration: Sequence[Tensor]) -> LoadedModel:
    """The variant of ``plan``: its own checkpoint or a copy of ``reference``, with every step applied.

    calibration: token ids, one 1-D int64 tensor a document. The reference stays byte for byte as it is.
    Raises ModelError as ``load`` does, and BackendError naming the step that failed.
    """
    start = _start(plan, reference)
    if not plan.variant.compress:
        return start
    _check_tokenizer(plan, start, reference)
    model = start.model
    described = {module.module: module for module in start.identity.modules if module.backend}
    activations: dict[str, str] = {}
    cache, notes = start.identity.cache, list(start.notes)
    for step in cast(Sequence[Backend], plan.variant.compress):
        done = _compress(step, model, start.tokenizer, calibration)
        _check_once(step, done, described, activations, cache)
        model, cache = done.model, done.cache or cache
        described |= {module.module: module for module in done.modules}
        activations |= done.activations
        notes += done.notes
    _freeze(model)
    check_placement(model, plan.name, start.identity.device)
    present = {name for name, _ in model.named_modules()}
    if gone := sorted((described.keys() | activations.keys()) - present):
        raise BackendError(f"a step described {gone[0]}, which the compressed model does not have")
    check_stated(model, activations)
    old = start.identity
    levels = check_levels(model, described)
    described |= {name: described[name].model_copy(update={"levels": count}) for name, count in levels.items()}
    modules = tuple(
        module.model_copy(update={"activations": activations[module.module], "kernel": "simulated"})
        if module.module in activations
        else module
        for module in module_formats(model, described)
    )
    identity = identify(
        plan.name, model, start.tokenizer, old.source, old.revision, old.dtype, old.device, modules
    )
    identity = identity.model_copy(update={"parameters": old.parameters, "cache": cache})
    notes += _compressed_notes(plan.name, model, described)
    return LoadedModel(plan.name, model, start.tokenizer, identity, start.files, tuple(notes))


def verify_unchanged(loaded: LoadedModel) -> None:
    """Raise ModelError when a file that ``loaded`` was read from has changed since."""
    verify_stamps(loaded.files)


def _start(plan: Plan, reference: LoadedModel) -> LoadedModel:
    """What the first backend step gets: a deep copy of the reference, or the variant's own checkpoint."""
    variant = plan.variant
    if variant.model == "reference":
        identity = reference.identity.model_copy(update={"name": plan.name})
        return LoadedModel(
            plan.name, copy.deepcopy(reference.model), reference.tokenizer, identity, reference.files, ()
        )
    spec = plan.reference.model_copy(
        update={
            "model": variant.model,
            "revision": variant.revision,
            "dtype": variant.dtype or plan.reference.dtype,
            "trust_remote_code": variant.trust_remote_code,
        }
    )
    return load(spec, plan.name)


def _check_tokenizer(plan: Plan, start: LoadedModel, reference: LoadedModel) -> None:
    """Raise BackendError where calibration documents would be read with the ids of another tokenizer."""
    needing = [step.kind for step in cast(Sequence[Backend], plan.variant.compress) if step.calibrates]
    if needing and start.identity.tokenizer_sha256 != reference.identity.tokenizer_sha256:
        raise BackendError(
            f"{needing[0]}: calibration documents are encoded as the reference does it, and {plan.variant.model} has "
            "another tokenizer; give both sides the same tokenizer files, or take a step that needs no calibration"
        )


def _compress(
    step: Backend, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
) -> Compressed:
    if step.calibrates and not calibration:
        raise BackendError(
            f"{step.kind}: needs calibration documents; add a calibration: section to the variant"
        )
    try:
        return step.compress(model, tokenizer, calibration)
    except HarnessError:
        raise
    except Exception as error:  # A library may raise anything; the user must learn which step it was.
        raise BackendError(f"{step.kind}: {type(error).__name__}: {error}") from error


def _check_once(
    step: Backend,
    done: Compressed,
    described: Mapping[str, ModuleFormat],
    activations: Mapping[str, str],
    cache: CacheFormat | None,
) -> None:
    """Raise BackendError where a step quantized what was quantized before: its numbers would be of neither format."""
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


def _freeze(model: nn.Module) -> None:
    model.eval()
    model.requires_grad_(False)


def _check_device(spec: ModelSpec) -> None:
    try:
        device = torch.device(spec.device)
    except RuntimeError as error:
        raise ModelError(f"{spec.model}: device {spec.device!r} is none that torch knows: {error}") from error
    if device.type == "meta":
        raise ModelError(f"{spec.model}: device is meta, where tensors have no values")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"{spec.model}: device is {spec.device}, but torch sees {torch.cuda.device_count()} CUDA "
            "devices; use device: cpu"
        )


def _load_model(folder: Path, spec: ModelSpec) -> PreTrainedModel:
    loader: Any = AutoModelForCausalLM
    try:
        with _quiet():
            model, info = loader.from_pretrained(
                folder,
                dtype=getattr(torch, spec.dtype),
                device_map=None if spec.device == "cpu" else {"": spec.device},
                attn_implementation=spec.attention,
                trust_remote_code=spec.trust_remote_code,
                use_safetensors=True,
                # Not to be forgiven: check_loading then refuses them by name, which the loader's own error does not.
                ignore_mismatched_sizes=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # The loader raises nearly anything for a folder that does not fit.
        raise ModelError(
            f"{spec.model}: transformers cannot load it: {type(error).__name__}: {error}"
        ) from error
    check_loading(folder, info)
    return cast(PreTrainedModel, model)


def _load_tokenizer(folder: Path, spec: ModelSpec) -> PreTrainedTokenizerBase:
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=spec.trust_remote_code
            )
    except Exception as error:  # As above.
        raise ModelError(
            f"{spec.model}: its tokenizer cannot be loaded: {type(error).__name__}: {error}; the folder "
            "needs the tokenizer files of the model (tokenizer.json and tokenizer_config.json)"
        ) from error
    return cast(PreTrainedTokenizerBase, tokenizer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing bars and reports: what matters in them is checked here."""
    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _notes(
    spec: ModelSpec, name: str, source: Source, weights: Weights, model: PreTrainedModel
) -> tuple[Note, ...]:
    notes = []
    if not source.pinned:
        text = f"{name}: {spec.model} has no commit as revision; used was {source.revision or 'unknown'}"
        notes.append(Note(topic="revision", text=text, level="warn"))
    stored = weights.floating()
    if stored and stored != (spec.dtype,):
        text = f"{name}: stored as {', '.join(stored)}, converted to {spec.dtype} as declared"
        notes.append(Note(topic="dtype", text=text))
    if names := non_finite(model):
        text = f"{name}: {len(names)} tensors hold NaN or infinity, {names[0]} first"
        notes.append(Note(topic="non-finite weights", text=text, level="warn"))
    return tuple(notes)


def _compressed_notes(
    name: str, model: PreTrainedModel, described: dict[str, ModuleFormat]
) -> tuple[Note, ...]:
    notes = []
    groups = {module: stated.group_size for module, stated in described.items() if stated.group_size}
    if ragged := ragged_groups(model, groups):
        example = f"{ragged[0]}, groups of {groups[ragged[0]]}"
        text = f"{name}: in {len(ragged)} modules the last group is shorter ({example})"
        notes.append(Note(topic="ragged groups", text=text))
    if names := non_finite(model):
        text = f"{name}: {len(names)} tensors hold NaN or infinity after compression, {names[0]} first"
        notes.append(Note(topic="non-finite weights", text=text, level="warn"))
    return tuple(notes)
