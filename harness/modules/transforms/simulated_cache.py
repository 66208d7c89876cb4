"""Installs a simulated KV cache in a model: finds its attention modules, verifies and configures them.

    eager pass ─ full-precision pass ─▶ same logits? same keys as cached? every layer? ─▶ settings on each module

Settings are attributes of the attention modules, so they are copied with the model; the function that reads them is
registered in transformers under one name for all models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionAndFullAttentionLayer
from transformers.masking_utils import eager_mask

from harness.errors import BackendError
from harness.modules.transforms.cached_attention import (
    NAME,
    SETTINGS,
    TEXT,
    AttentionCall,
    CacheSettings,
    cached_attention,
    record_calls,
)

TRIAL_TOKENS = 16
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
"""Largest difference of logits from those of the model's own attention, in units of their root mean square; 0.05 for
16-bit dtypes."""


class WholeTexts(DynamicLayer):
    """A cache layer that keeps all tokens, and where each text starts, even with sliding-window attention.

    A group of keys that has partly left the window must still be quantized as a whole group.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.starts_B: Tensor | None = None

    def remember(self, starts_B: Tensor) -> Tensor:
        """Update and return the start of each text, given the first key visible to the newest queries."""
        known = self.starts_B
        self.starts_B = starts_B if known is None else torch.minimum(known.to(starts_B.device), starts_B)
        return self.starts_B

    def reset(self) -> None:
        """Forget the texts."""
        super().reset()
        self.starts_B = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Replace the texts by those at ``beam_idx`` [B]."""
        super().reorder_cache(beam_idx)
        self._choose(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the texts at ``indices``."""
        super().batch_select_indices(indices)
        self._choose(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every text."""
        super().batch_repeat_interleave(repeats)
        if self.starts_B is not None:
            self.starts_B = self.starts_B.repeat_interleave(repeats)

    def _choose(self, indices: Tensor) -> None:
        if self.starts_B is not None:
            self.starts_B = self.starts_B[indices.to(self.starts_B.device)]


def trace_attention(model: PreTrainedModel) -> list[AttentionCall]:
    """One call of every attention module that has a cache, recorded on a few tokens in full precision.

    The model then uses ``cached_attention``. Raises BackendError, with the model's attention restored, if a simulated
    cache would not act on all of the model: no cache, or attention that bypasses transformers' interface, computes
    something else, or does not read the cached tensors.
    """
    AttentionInterface.register(NAME, cached_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    before = model.config._attn_implementation
    if before == NAME:
        raise BackendError("kv_cache: the model has a simulated cache already")
    if not model._can_set_attn_implementation():
        _refuse_own_attention(model, _find_kept(_run_short_text(model)).keys())
    try:
        model.set_attn_implementation("eager")
        expected = _run_short_text(model)
        model.set_attn_implementation(NAME)
        with record_calls() as calls:
            simulated = _run_short_text(model)
        _check_calls(model, _find_kept(simulated), calls)
        _check_logits(model, simulated.logits, expected.logits)
    except BaseException:
        model.set_attn_implementation(before)
        raise
    return calls


def install_cache(calls: list[AttentionCall], settings: Callable[[AttentionCall], CacheSettings]) -> None:
    """Set the settings of every attention module, and the hooks that manage its cache layer."""
    for call in calls:
        setattr(call.module, SETTINGS, settings(call))
        call.module.register_forward_pre_hook(_prepare_layer, with_kwargs=True)
        call.module.register_forward_hook(_forget_texts, always_call=True)


def _prepare_layer(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Check the cache layer that the module is about to use; an empty one that drops old tokens is replaced."""
    cache = next((value for value in (*arguments, *named.values()) if isinstance(value, Cache)), None)
    if cache is None:
        return
    index: int = module.layer_idx  # type: ignore[assignment]
    while len(cache.layers) <= index and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    # A module that shares the keys of an earlier layer has no own cache layer.
    if index < len(cache.layers):
        cache.layers[index] = _supported_layer(module, cache.layers[index])
    # All layers hold the same texts, so the first one that remembers their starts serves all.
    if whole := next((layer for layer in cache.layers if isinstance(layer, WholeTexts)), None):
        setattr(module, TEXT, whole.remember)


def _supported_layer(module: nn.Module, layer: Any) -> Any:
    """The cache layer itself, or, for an empty one of transformers, a layer that keeps all tokens."""
    if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and not layer.get_seq_length():
        return WholeTexts()
    if type(layer) in (WholeTexts, LinearAttentionAndFullAttentionLayer):
        return layer
    raise BackendError(
        f"kv_cache: {type(module).__name__} received a {type(layer).__name__}, but only a DynamicCache filled by this "
        "model can be simulated; remove cache_implementation and past_key_values"
    )


def _forget_texts(module: nn.Module, _arguments: object, _output: object) -> None:
    if hasattr(module, TEXT):
        delattr(module, TEXT)


def _run_short_text(model: PreTrainedModel) -> Any:
    config = model.config.get_text_config()
    tokens = min(TRIAL_TOKENS, getattr(config, "max_position_embeddings", None) or TRIAL_TOKENS)
    ids = torch.arange(1, tokens + 1, device=model.device) % config.vocab_size
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=True, return_dict=True)


def _find_kept(output: Any) -> dict[int, Any]:
    """The layers of a cache that hold keys, by number."""
    layers: list[Any] = getattr(getattr(output, "past_key_values", None), "layers", [])
    return {index: layer for index, layer in enumerate(layers) if getattr(layer, "keys", None) is not None}


def _check_calls(model: PreTrainedModel, kept: Mapping[int, Any], calls: list[AttentionCall]) -> None:
    """Raise BackendError unless every cache layer holds the tensors that an attention module received."""
    by_layer = {call.layer: call for call in calls}
    if not kept or kept.keys() - by_layer.keys():
        _refuse_own_attention(model, kept.keys() - by_layer.keys())
    for index, layer in kept.items():
        name = f"{type(by_layer[index].module).__name__} (layer {index} of {type(model).__name__})"
        for given, held in ((by_layer[index].key, layer.keys), (by_layer[index].value, layer.values)):
            if given.shape[1] != held.shape[1] or given.shape[3] != held.shape[3]:
                raise BackendError(
                    f"kv_cache: {name} caches latents, {held.shape[3]} values of a token, that it expands to "
                    f"{given.shape[1]} heads of {given.shape[3]} afterwards (multi-head latent attention); only cached "
                    "keys and values can be simulated; remove the step"
                )
            if not torch.equal(given[:, :, -held.shape[2] :], held):
                raise BackendError(
                    f"kv_cache: {name} attends to tensors other than those it caches; its cache cannot be simulated"
                )


def _refuse_own_attention(model: PreTrainedModel, missed: Collection[int]) -> NoReturn:
    """Raise BackendError: no cache at all, or layers of it whose attention bypasses transformers' interface."""
    kind = type(model).__name__
    if not missed:
        raise BackendError(f"kv_cache: {kind} caches no keys and values; remove the step")
    parts = [part for part in model.modules() if getattr(part, "layer_idx", None) in missed and _is_attention(part)]
    classes = sorted({type(part).__name__ for part in parts})
    raise BackendError(
        f"kv_cache: {', '.join(classes) or kind} (layer {min(missed)} of {kind}) does not use transformers' "
        "attention interface, so its cache cannot be simulated; remove the step, or use a release of transformers "
        "where it does"
    )


def _is_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


def _check_logits(model: PreTrainedModel, logits: Tensor, expected: Tensor) -> None:
    """Raise BackendError if the architecture's attention has a part that ``cached_attention`` lacks."""
    scale = expected.double().square().mean().sqrt()
    error = float((logits.double() - expected.double()).abs().max() / scale)
    if error > TOLERANCE.get(expected.dtype, 0.05):
        raise BackendError(
            f"kv_cache: in full precision the logits of {type(model).__name__} differ by {error:.1e} root mean squares "
            "from those of its own attention, which must compute something other than softmax(q·k)·v"
        )
