"""Makes a student of its teacher by leaving decoder blocks out.

teacher ─▶ copy ─▶ chosen blocks, renumbered ─▶ config cut in the same way ─▶ checked against a model of that config
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harness.errors import BackendError
from harness.modules.layer_pairs import block_numbers

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""Names under which configurations state the number of decoder blocks."""
_INDICES = ("mlp_only_layers", "full_attn_idxs", "full_attention_idxs", "attn_layer_indices", "cross_attention_layers")
"""Lists of numbers of decoder blocks."""
_LEADING = ("first_k_dense_replace", "num_dense_layers")
"""Of how many blocks, the first ones, something else holds."""
_NO_LAYERS = ("token_id", "token_ids", "architectures", "_ids", "langs")
"""How the names of lists end that may be as long as there are blocks, but say nothing of blocks."""
_PLAIN = (bool, int, float, str, type(None))


def choose_half(blocks: int) -> tuple[int, ...]:
    """Every other decoder block, from the first on."""
    return tuple(range(0, blocks, 2))


def cut_blocks(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A copy of ``model`` with the decoder blocks ``kept`` alone, which keep their weights; width, embeddings and head
    stay as they are.

    kept: numbers of blocks, ascending. Raises BackendError for blocks that ``model`` does not have, and for a choice
    that no configuration of its class describes, so that what is saved would be another model.
    """
    names = list(block_numbers(model))
    _check_choice(model, kept, len(names))
    student = copy.deepcopy(model)
    owner, _, leaf = names[0].rpartition(".")[0].rpartition(".")
    parent = student.get_submodule(owner)
    blocks: nn.ModuleList = getattr(parent, leaf)
    setattr(parent, leaf, nn.ModuleList(blocks[number] for number in kept))
    for number, block in enumerate(getattr(parent, leaf)):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number
    _cut_config(student.config.get_text_config(), kept, len(names))
    _check_described(student, kept)
    return student


def make_from_config(path: str, model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the configuration in ``path`` (a config.json, or a folder with one), with random weights of ``seed``.

    Its class is that which transformers has for the configuration; dtype, device and attention are those of ``model``.
    Raises BackendError for a configuration that cannot be read, and for another vocabulary than that of ``model``.
    """
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BackendError(f"distill: student.config: {path} is no configuration of transformers: {error}") from error
    own, wanted = config.get_text_config().vocab_size, model.config.get_text_config().vocab_size
    if own != wanted:
        raise BackendError(
            f"distill: student.config: {path} has vocab_size {own}, expected {wanted}, that of the reference, whose "
            "tokenizer the student reads"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: Any = AutoModelForCausalLM.from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    made.generation_config = copy.deepcopy(model.generation_config)
    student: PreTrainedModel = made.to(model.device).eval()
    return student


def count_blocks(model: PreTrainedModel) -> int:
    """Number of decoder blocks."""
    return len(block_numbers(model))


def _check_choice(model: PreTrainedModel, kept: Sequence[int], blocks: int) -> None:
    if not blocks:
        raise BackendError(f"distill: {type(model).__name__} has no list of decoder blocks")
    beyond = [number for number in kept if not 0 <= number < blocks]
    if beyond:
        raise BackendError(f"distill: student.layers: found layer {beyond[0]}, expected 0 to {blocks - 1}")
    if not kept or any(after <= before for before, after in pairwise(kept)):
        raise BackendError(f"distill: student.layers: found {list(kept)}, expected numbers that ascend, at least one")
    if len(kept) == blocks:
        raise BackendError(
            f"distill: student.layers: found all {blocks} layers of the reference, expected fewer; leave layers out"
        )


def _cut_config(config: Any, kept: Sequence[int], blocks: int) -> None:
    """Let a configuration describe the kept blocks alone: their number, numbers of leading ones, lists of
    numbers, and lists with an entry for each."""
    for name, value in list(config.to_dict().items()):
        if name in _COUNTS and value == blocks:
            setattr(config, name, len(kept))
        elif name in _LEADING and isinstance(value, int):
            setattr(config, name, sum(number < value for number in kept))
        elif name in _INDICES and isinstance(value, list):
            setattr(config, name, [place for place, number in enumerate(kept) if number in value])
        elif isinstance(value, list) and len(value) == blocks and not name.endswith(_NO_LAYERS):
            setattr(config, name, [value[number] for number in kept])


def _check_described(student: PreTrainedModel, kept: Sequence[int]) -> None:
    """Raise BackendError if a model made from the student's config has other blocks than the student."""
    config = copy.deepcopy(student.config)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        made = type(student)._from_config(config)
    for name in block_numbers(student):
        ours, theirs = (dict(_traits(model.get_submodule(name))) for model in (student, made))
        differing = next((trait for trait in ours | theirs if ours.get(trait) != theirs.get(trait)), None)
        if differing is not None:
            number = int(name.rpartition(".")[2])
            raise BackendError(
                f"distill: student.layers: layer {kept[number]} would be layer {number} of the student, for which the "
                f"configuration of {type(student).__name__} means another kind: {differing} is "
                f"{ours.get(differing, 'missing')}, and would be {theirs.get(differing, 'missing')}; choose other "
                "layers"
            )


def _traits(block: nn.Module) -> Iterator[tuple[str, Any]]:
    """What tells one kind of block from another: modules, shapes of parameters, plain attributes such as a window."""
    for name, module in block.named_modules():
        yield f"{name}.type", type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, _PLAIN) and not key.startswith("_") and key not in ("layer_idx", "training"):
                yield f"{name}.{key}".lstrip("."), value
    for name, parameter in block.named_parameters():
        yield name, tuple(parameter.shape)
