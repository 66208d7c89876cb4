"""PEFT adapters (LoRA and variants): loads them, merges or attaches them, and verifies every tensor.

    merged       W + B·A        before the steps: one weight, as if the model had been trained so
    attached     W·x + B·(A·x)  after the steps: the base as it was compressed, the adapter in full precision (QLoRA)

An adapter is inserted into the modules of the model itself, so that they keep the names by which layers are compared.
The loaded tensors are compared with the file one by one: an adapter that was loaded in part would be another model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.errors import MissingDependencyError, ModelError
from harness.models.fingerprints import fingerprint_file
from harness.models.identity import weights_sha256
from harness.models.sanity import check_placement
from harness.models.stored_formats import formats_in_use
from harness.models.transformers_output import silence_transformers
from harness.models.trust import check_code_fields
from harness.models.weight_files import read_json
from harness.modules.file_dtypes import FileTensor, keep_file_dtypes, state_file_dtypes
from harness.modules.inspection import format_of_dtype, module_formats, stored_bytes
from harness.modules.kernels import inspect_kernels
from harness.modules.linears import linears
from harness.modules.non_finite import find_non_finite, note_non_finite
from harness.records import ModuleFormat, Note

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HERE = ("base_model_name_or_path", "revision", "inference_mode")
"""Configuration fields that do not affect the computation."""


def merge_adapter(base: LoadedModel, folder: Path) -> LoadedModel:
    """Add the adapter to the weights of ``base`` in place; raises ModelError as ``attach_adapter`` does."""
    before = base.identity
    adapted, stored, config = _adapt(base, folder)
    untied = _untie(adapted)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of rounding, when it is merged into quantized weights: noted below.
            model = cast(PreTrainedModel, adapted.merge_and_unload())
    except Exception as error:  # Kinds of layers that cannot be merged raise nearly anything.
        raise ModelError(
            f"{folder}: cannot be merged into {before.source}: {type(error).__name__}: {error}; leave out merge"
        ) from error
    _settle(model)
    method = next((module.backend for module in before.modules if module.backend), "")
    stated = module_formats(model, formats_in_use(model, {}, method), method)
    modules = inspect_kernels(model, keep_file_dtypes(stated, before.modules))
    text = f"{_words(base.name, folder, config, stored)}, merged into the weights"
    if method:
        text += f", which are quantized ({method}) and were rounded again"
    if untied:
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
        text += f"; {untied[0]}, which was tied to another module, has a weight of its own now"
    changed = frozenset(name for name, _ in linears(model) if any(f".{name}." in f".{key}" for key in stored))
    merged = _rebuild(base, model, modules, folder, config, stored, text)
    return replace(merged, retrained=changed)


def attach_adapter(base: LoadedModel, folder: Path) -> LoadedModel:
    """Attach the adapter to ``base`` without changing its weights.

    Raises ModelError for an adapter that is damaged, of a type that does not modify modules, that matches no module,
    has other shapes, or has a tensor without a matching parameter.
    """
    before = {id(parameter) for parameter in base.model.parameters()}
    adapted, stored, config = _adapt(base, folder)
    model = cast(PreTrainedModel, adapted.get_base_model())
    _settle(model)
    check_placement(model, base.name, base.identity.device)
    files = {
        name: FileTensor(str(tensor.dtype).removeprefix("torch."), stored_bytes(tensor))
        for name, tensor in stored.items()
    }
    modules = (*base.identity.modules, *state_file_dtypes(_formats(model, before), files))
    text = f"{_words(base.name, folder, config, stored)}, attached"
    attached = _rebuild(base, model, modules, folder, config, stored, text)
    return replace(attached, adapter=folder)


@contextmanager
def detach_adapter(model: PreTrainedModel) -> Iterator[None]:
    """Temporarily remove the adapter, so that the model is as before ``attach_adapter`` and can be saved."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    held: dict[str, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, BaseTunerLayer):
            held[name] = module
            model.set_submodule(name, module.get_base_layer())
        elif isinstance(module, AuxiliaryTrainingWrapper):
            held[name] = module
            model.set_submodule(name, module.original_module)
    try:
        yield
    finally:
        for name, module in held.items():
            model.set_submodule(name, module)


def copy_adapter(folder: Path, target: Path) -> None:
    """Copy the files of an adapter into another folder, which is created."""
    target.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(folder / name, target / name)


def _adapt(base: LoadedModel, folder: Path) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """Return the peft model around ``base.model`` (changed in place), the tensors of the file, and the
    configuration."""
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError("peft", f"the adapter {folder}", "pip install peft") from error
    config, stored = _read(folder)
    dtype = getattr(torch, base.identity.dtype)
    try:
        with silence_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of keys that are missing: they are checked below.
            settings = peft.PeftConfig.from_pretrained(str(folder))
            if settings.is_prompt_learning or settings.is_adaption_prompt:
                kind = config.get("peft_type")
                raise ModelError(
                    f"{folder}: {kind} modifies the input, not modules; expected LoRA or a similar adapter"
                )
            settings.inference_mode = True
            adapted = peft.PeftModel.from_pretrained(
                base.model,
                str(folder),
                config=settings,
                is_trainable=False,
                autocast_adapter_dtype=False,
                torch_device=base.identity.device,
            )
    except ModelError:
        raise
    except Exception as error:  # peft raises nearly anything for an adapter that does not fit.
        raise ModelError(
            f"{folder}: does not fit {base.identity.source}: {type(error).__name__}: {_first_line(error)}; expected an "
            f"adapter that was trained on it (its base was {config.get('base_model_name_or_path') or 'not noted'})"
        ) from error
    for name, parameter in adapted.named_parameters():
        if ".default" in name and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    _check_read(folder, adapted, stored, dtype)
    return adapted, stored, config


def _untie(adapted: nn.Module) -> list[str]:
    """Give modules with an adapter a weight of their own where it is shared, so that merging changes no other module.

    Returns their names.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    held = [each for module in adapted.modules() for each in module._parameters.values() if each is not None]
    owners, untied = Counter(map(id, held)), []
    for name, module in adapted.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        inner = module.get_base_layer()
        for key, parameter in list(inner._parameters.items()):
            if parameter is not None and owners[id(parameter)] > 1:
                setattr(inner, key, nn.Parameter(parameter.detach().clone(), requires_grad=False))
                untied.append(name.removeprefix("base_model.model."))
    return untied


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read configuration and tensors; raises ModelError for files that are missing, damaged, pickles, or would run
    code."""
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder}: has no {CONFIG}, so it is not a peft adapter")
    config = read_json(folder / CONFIG)
    check_code_fields(folder / CONFIG)
    if config.get("megatron_config"):
        raise ModelError(f"{folder}: megatron_config makes peft import other code; remove it from {CONFIG}")
    if not (folder / WEIGHTS).is_file():
        others = sorted(path.name for path in folder.glob("adapter_model.*"))
        raise ModelError(
            f"{folder}: has no {WEIGHTS} (it has {', '.join(others) or 'no weights'}); pickles can run code and are "
            "not loaded: save it again with save_pretrained(folder)"
        )
    try:
        return config, load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / WEIGHTS}: damaged or truncated: {error}; fetch it again") from error


def _check_read(folder: Path, adapted: Any, stored: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Raise ModelError unless the tensors in the model are those of the file: names, shapes and values.

    ``state_dict()`` is not called: bitsandbytes rewrites weights when it is.
    """
    from peft import get_peft_model_state_dict

    held = dict(adapted.named_parameters(remove_duplicate=False)) | dict(adapted.named_buffers())
    found = get_peft_model_state_dict(adapted, state_dict=held, save_embedding_layers=False)
    # peft saves embedding and head of the base beside an adapter of theirs, or of others if it is asked to.
    whole = get_peft_model_state_dict(adapted, state_dict=held, save_embedding_layers=True) | held
    found |= {name: whole[name] for name in stored.keys() & whole.keys() - found.keys()}
    problems = {
        "in the file, without a matching parameter in the model": sorted(stored.keys() - found.keys()),
        "in the model, not in the file": sorted(found.keys() - stored.keys()),
        "different from the file": sorted(
            name for name in stored.keys() & found.keys() if not _agree(found[name], stored[name], dtype)
        ),
    }
    if said := [f"{what}: {names[0]} ({len(names)} in all)" for what, names in problems.items() if names]:
        raise ModelError(
            f"{folder}: does not fit the model; tensors {'; '.join(said)}; expected an adapter that was trained on it"
        )


def _agree(found: Tensor, stored: Tensor, dtype: torch.dtype) -> bool:
    wanted = stored.to(found.device, dtype if stored.is_floating_point() else stored.dtype)
    return found.shape == wanted.shape and torch.allclose(found.detach(), wanted, rtol=0, atol=0, equal_nan=True)


def _formats(model: nn.Module, before: Set[int]) -> Iterator[ModuleFormat]:
    """The modules of an adapter: those with parameters that did not exist before (by id)."""
    for name, module in model.named_modules():
        new = [each for each in module._parameters.values() if each is not None and id(each) not in before]
        if new:
            yield ModuleFormat(
                module=name,
                type=f"{type(module).__name__} (adapter)",
                parameters=sum(each.numel() for each in new),
                stored_bytes=sum(stored_bytes(each) for each in new),
                bits_per_weight=8.0 * new[0].element_size(),
                format=format_of_dtype(new[0].dtype),
            )


def _settle(model: nn.Module) -> None:
    model.eval()
    model.requires_grad_(False)


def _rebuild(
    base: LoadedModel,
    model: PreTrainedModel,
    modules: tuple[ModuleFormat, ...],
    folder: Path,
    config: Mapping[str, Any],
    stored: Mapping[str, Tensor],
    text: str,
) -> LoadedModel:
    """Identity of the adapted model. What the adapter computes apart from its tensors (its scale) is part of the
    configuration."""
    kept = {key: value for key, value in config.items() if key not in _HERE}
    also = json.dumps([base.identity.config_sha256, kept], sort_keys=True)
    identity = base.identity.model_copy(
        update={
            "source": f"{base.identity.source} + {folder}",
            "parameters": sum(module.parameters for module in modules),
            "weights_sha256": weights_sha256(model),
            "config_sha256": hashlib.sha256(also.encode()).hexdigest(),
            "modules": modules,
        }
    )
    notes = [Note(topic="adapter", text=text), *_warn(base, folder, config, stored)]
    non_finite = find_non_finite(model)
    if not base.non_finite:
        notes += note_non_finite(f"{base.name} with the adapter", non_finite)
    fingerprints = (fingerprint_file(folder / CONFIG), fingerprint_file(folder / WEIGHTS))
    adapted = base.with_modules(base.name, model)
    return replace(
        adapted,
        identity=identity,
        files=(*base.files, *fingerprints),
        notes=(*base.notes, *notes),
        non_finite=non_finite,
    )


def _warn(base: LoadedModel, folder: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> Iterator[Note]:
    """Possible mistakes: an adapter of another base, one that changes nothing, a tokenizer that is ignored."""
    told = config.get("base_model_name_or_path")
    called = {Path(name).name for name in (base.identity.source, base.model.config.name_or_path or "")}
    if isinstance(told, str) and told and Path(told).name not in called:
        text = f"{base.name}: the adapter was trained on {told}, but is applied to {base.identity.source}"
        yield Note(topic="adapter", text=text, level="warn")
    last = [tensor for name, tensor in stored.items() if "lora_B" in name or "lora_embedding_B" in name]
    if last and not any(bool(tensor.any()) for tensor in last):
        text = f"{base.name}: every lora_B of the adapter is zero: it changes nothing (it was never trained)"
        yield Note(topic="adapter", text=text, level="warn")
    if (folder / "tokenizer.json").exists():
        text = f"{base.name}: the tokenizer in the adapter's folder is ignored; that of the base is used"
        yield Note(topic="adapter", text=text)


def _words(name: str, folder: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> str:
    """ "tiny: LoRA adapter x (r 8, alpha 16; 28 tensors, 7,168 parameters, 28,672 bytes)"."""
    known = {"r": config.get("r"), "alpha": config.get("lora_alpha")}
    sizes = [f"{said} {value}" for said, value in known.items() if value is not None]
    values = sum(tensor.numel() for tensor in stored.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    parts = f"{len(stored)} tensors, {values:,} parameters, {size:,} bytes in the file"
    return f"{name}: {config.get('peft_type', 'PEFT')} adapter {folder.name} ({', '.join([*sizes, parts])})"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400]
