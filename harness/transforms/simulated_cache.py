"""Giving a model a simulated KV cache: which modules attend, whether they can be served, and what they remember.

    eager pass ─ trial in full precision ─▶ same logits? same keys as cached? every layer? ─▶ settings on each module

Settings are attributes of the attention modules, so they travel with a copy of the model; the function that reads
them is registered in transformers under one name for all models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionAndFullAttentionLayer
from transformers.masking_utils import eager_mask

from harness.errors import BackendError
from harness.transforms.cached_attention import NAME, SETTINGS, TEXT, CacheSettings, Seen, cached_attention, trial

TRIAL_TOKENS = 16
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
"""How far logits may be from those of the model's own attention, in units of their root mean square; 0.05 in 16
bits."""


class WholeTexts(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer that keeps all tokens, and where each text starts, even if attention slides a window.

    A group of keys that the window has left in part must still be quantized as the whole group was.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.starts_B: Tensor | None = None

    def remember(self, starts_B: Tensor) -> Tensor:
        """Where texts start, given what the newest queries may see."""
        known = self.starts_B
        self.starts_B = starts_B if known is None else torch.minimum(known.to(starts_B.device), starts_B)
        return self.starts_B

    def reset(self) -> None:
        """Forget the texts."""
        super().reset()
        self.starts_B = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """The texts of ``beam_idx`` [B] instead of those that were there."""
        super().reorder_cache(beam_idx)
        self._choose(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some texts."""
        super().batch_select_indices(indices)
        self._choose(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every text several times."""
        super().batch_repeat_interleave(repeats)
        if self.starts_B is not None:
            self.starts_B = self.starts_B.repeat_interleave(repeats)

    def _choose(self, indices: Tensor) -> None:
        if self.starts_B is not None:
            self.starts_B = self.starts_B[indices.to(self.starts_B.device)]


def attention_calls(model: PreTrainedModel) -> list[Seen]:
    """One call of every attention module that keeps a cache, tried on a few tokens in full precision.

    The model then attends with ``cached_attention``. Raises BackendError, with the model attending as before, where
    a simulated cache would not act on it, or not on all of it: no cache, attention that does not go through
    transformers' interface, computes something else or is not given what lies in the cache.
    """
    AttentionInterface.register(NAME, cached_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    before = model.config._attn_implementation
    if before == NAME:
        raise BackendError("kv_cache: the model has a simulated cache already")
    try:
        model.set_attn_implementation("eager")
        wanted = _run(model)
        model.set_attn_implementation(NAME)
        with trial() as calls:
            found = _run(model)
        _check_calls(model, getattr(found, "past_key_values", None), calls)
        _check_logits(model, found.logits, wanted.logits)
    except BaseException:
        model.set_attn_implementation(before)
        raise
    return calls


def install(calls: list[Seen], settings: Callable[[Seen], CacheSettings]) -> None:
    """Give every attention module its settings, and the hooks that look after its cache layer."""
    for call in calls:
        setattr(call.module, SETTINGS, settings(call))
        call.module.register_forward_pre_hook(_before, with_kwargs=True)
        call.module.register_forward_hook(_after, always_call=True)


def _before(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Look at the cache layer that the module is about to use; one that drops old tokens is replaced while empty."""
    cache = next((value for value in (*arguments, *named.values()) if isinstance(value, Cache)), None)
    if cache is None:
        return
    index: int = module.layer_idx  # type: ignore[assignment]
    while len(cache.layers) <= index and cache.layer_class_to_replicate is not None:
        cache.layers.append(cache.layer_class_to_replicate())
    # A module that shares the keys of an earlier layer has no cache layer of its own.
    if index < len(cache.layers):
        cache.layers[index] = _served(module, cache.layers[index])
    # All layers hold the same texts, so the first one that remembers does it for all.
    if whole := next((layer for layer in cache.layers if isinstance(layer, WholeTexts)), None):
        setattr(module, TEXT, whole.remember)


def _served(module: nn.Module, layer: Any) -> Any:
    """The cache layer itself, or instead of an empty one of transformers' own one that keeps all tokens."""
    if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and not layer.get_seq_length():
        return WholeTexts()
    if type(layer) in (WholeTexts, LinearAttentionAndFullAttentionLayer):
        return layer
    raise BackendError(
        f"kv_cache: {type(module).__name__} is given a {type(layer).__name__}, and only a DynamicCache that this model "
        "has filled can be simulated; leave cache_implementation and past_key_values out"
    )


def _after(module: nn.Module, _arguments: object, _output: object) -> None:
    if hasattr(module, TEXT):
        delattr(module, TEXT)


def _run(model: PreTrainedModel) -> Any:
    config = model.config.get_text_config()
    tokens = min(TRIAL_TOKENS, getattr(config, "max_position_embeddings", None) or TRIAL_TOKENS)
    ids = torch.arange(1, tokens + 1, device=model.device) % config.vocab_size
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=True, return_dict=True)


def _check_calls(model: PreTrainedModel, cache: object, calls: list[Seen]) -> None:
    """Raise BackendError unless what every cache layer holds is what an attention module was given."""
    kind = type(model).__name__
    layers: list[Any] = getattr(cache, "layers", [])
    kept = {index: layer for index, layer in enumerate(layers) if getattr(layer, "keys", None) is not None}
    if not kept:
        raise BackendError(f"kv_cache: {kind} keeps no keys and values; leave the step out")
    by_layer = {call.layer: call for call in calls}
    if missed := [index for index in kept if index not in by_layer]:
        classes = sorted(
            {type(m).__name__ for m in model.modules() if getattr(m, "layer_idx", None) in missed and _attends(m)}
        )
        raise BackendError(
            f"kv_cache: {', '.join(classes) or kind} (layer {missed[0]} of {kind}) does not use transformers' "
            "attention interface, so its cache cannot be simulated; leave the step out, or use a release of "
            "transformers where it does"
        )
    for index, layer in kept.items():
        for given, held in ((by_layer[index].key, layer.keys), (by_layer[index].value, layer.values)):
            if not torch.equal(given[:, :, -held.shape[2] :], held):
                raise BackendError(
                    f"kv_cache: {type(by_layer[index].module).__name__} (layer {index} of {kind}) attends to other "
                    "tensors than it caches; its cache cannot be simulated"
                )


def _attends(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


def _check_logits(model: PreTrainedModel, found: Tensor, wanted: Tensor) -> None:
    """Raise BackendError where the attention of the architecture has a part that ours lacks."""
    scale = wanted.double().square().mean().sqrt()
    apart = float((found.double() - wanted.double()).abs().max() / scale)
    if apart > TOLERANCE.get(wanted.dtype, 0.05):
        raise BackendError(
            f"kv_cache: in full precision {type(model).__name__} gives logits {apart:.1e} root mean squares from those "
            "of its own attention, which must compute something else than softmax(q·k)·v"
        )
