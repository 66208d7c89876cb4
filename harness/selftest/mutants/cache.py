"""Mutants whose KV cache is read back wrongly."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from harness.backends import Compressed
from harness.backends.kv_cache import KvCache
from harness.errors import BackendError
from harness.modules.transforms.cached_attention import CacheSettings
from harness.modules.transforms.simulated_cache import install_cache, trace_attention
from harness.numerics.kv_cache import CachePart
from harness.selftest.mutants import NotApplicable, harmless, mutant

FP8 = KvCache(format="fp8_e4m3", keys="token", values="token", group_size=None, residual=0)


@harmless("control")
def fp8_cache(model: PreTrainedModel) -> Compressed:
    """A good FP8 cache of keys and values, from which the cache mutants are derived."""
    return _misread_cache(model, 1.0)


@mutant(control="fp8_cache")
def cache_scale_doubled(model: PreTrainedModel) -> Compressed:
    """Keys and values come back from the cache twice as large: scales for another FP8 format."""
    return _misread_cache(model, 2.0)


@mutant(control="fp8_cache")
def cache_scale_halved(model: PreTrainedModel) -> Compressed:
    """Keys and values come back from the cache half as large."""
    return _misread_cache(model, 0.5)


@dataclass(frozen=True)
class _Misread(CachePart):
    """A cache part whose values are read back multiplied by ``times``."""

    times: float = 1.0

    def quantize(self, x_BHSD: Tensor, starts_B: Tensor) -> Tensor:
        return super().quantize(x_BHSD, starts_B) * self.times


def _misread_cache(model: PreTrainedModel, times: float) -> Compressed:
    try:
        calls = trace_attention(model)
    except BackendError as error:
        raise NotApplicable(f"the cache of {type(model).__name__} cannot be simulated: {error}") from error
    part = FP8.settings_of(calls[0])
    settings = CacheSettings(_misread(part.keys, times), _misread(part.values, times))
    install_cache(calls, lambda _: settings)
    return Compressed(model, cache=FP8._describe(calls))


def _misread(part: CachePart | None, times: float) -> CachePart | None:
    return part and _Misread(part.grid, part.along, part.size, part.residual, part.flush, times)
