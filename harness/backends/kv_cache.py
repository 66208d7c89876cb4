"""Quantization of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.backends import Backend, Compressed
from harness.errors import BackendError
from harness.numerics.named_formats import Bits, CacheFormatName, named_formats
from harness.records import FLOATS, CacheFormat, Note, NumberFormat

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.modules.transforms.cached_attention import AttentionCall, CacheSettings
    from harness.numerics.kv_cache import CachePart

Scales = Literal["channel", "token", "unscaled"]


class KvCache(Backend):
    """Quantizes cached keys and values: keys per channel, values per token, the newest tokens in full precision.

    Every query, of a prompt, of a scored text or of a generated token, attends to what it would see if the text had
    been decoded token by token with such a cache. Keys are quantized after the rotary embedding. Asymmetric blocks use
    their minimum as offset, so a scale and an offset of 16 bits each are counted. The cache is simulated: it stores
    floats, for all tokens even with sliding-window attention. After KIVI (Liu et al. 2024, arXiv 2402.02750), which
    ``flush_keys`` reproduces except for prompts: KIVI reads a prompt in full precision.
    """

    quantizes = ("cache",)
    writes_in_place = False

    format: CacheFormatName = "int"
    """``int`` (with bits), ``fp8_e4m3`` or ``fp8_e5m2``."""
    bits: Bits | None = None
    """Bits of keys and values; only with format ``int``."""
    key_bits: Bits | None = None
    """Bits of keys, if different; without ``bits`` and ``value_bits``, values stay in full precision."""
    value_bits: Bits | None = None
    """Bits of values, if different; without ``bits`` and ``key_bits``, keys stay in full precision."""
    symmetric: bool = False
    """true: codes around 0 without an offset; FP8 is always symmetric."""
    keys: Scales = "channel"
    """The keys that share a scale: one channel over ``group_size`` consecutive tokens, or ``group_size`` channels of
    one token. ``unscaled``: FP8 without any scale."""
    values: Scales = "token"
    """The values that share a scale, as for keys."""
    group_size: Annotated[int, Field(ge=1, examples=[128])] | None = 32
    """Tokens or channels that share a scale; null (not with ``channel``): all channels of a head."""
    residual: Annotated[int, Field(ge=0)] = 32
    """Number of newest tokens that stay in full precision. Per channel, tokens are quantized ``group_size`` at a time,
    once all of them are older."""
    flush_keys: bool = False
    """Collect keys until there are ``residual`` tokens, then quantize all of them at once, so that none stays in full
    precision."""
    skip_layers: tuple[Annotated[int, Field(ge=0, examples=[0])], ...] = ()
    """Layers, counted from 0, whose cache stays in full precision."""

    @model_validator(mode="after")
    def _check_settings(self) -> KvCache:
        given = (self.bits, self.key_bits, self.value_bits)
        if (self.format == "int") != any(bits is not None for bits in given):
            raise ValueError("bits, key_bits and value_bits belong to format: int, which needs one of them")
        scales = (self.keys, self.values)
        if self.format == "int" and "unscaled" in scales:
            raise ValueError("unscaled needs format: fp8_e4m3 or fp8_e5m2; integers need a scale")
        if self.format != "int" and self.symmetric:
            raise ValueError(f"symmetric is a choice of format: int; {self.format} is always symmetric")
        if self.group_size is None and "channel" in scales:
            raise ValueError("a scale per channel needs group_size, because the number of tokens is not bounded")
        unit = (self.group_size or 1) if self.keys == "channel" else 1
        if self.flush_keys and (not self.residual or self.residual % unit):
            raise ValueError(f"flush_keys needs a residual that is a multiple of {unit}, not {self.residual}")
        return self

    def compress(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, calibration: Sequence[Tensor]
    ) -> Compressed:
        """Make every attention module read a simulated cache; raises BackendError if the model does not allow it."""
        from harness.modules.transforms.simulated_cache import install_cache, trace_attention

        calls = trace_attention(model)
        known = {call.layer for call in calls if call.layer is not None}
        if unknown := sorted(set(self.skip_layers) - known):
            raise BackendError(f"kv_cache: skip_layers has {unknown[0]}, but layers with a cache are {sorted(known)}")
        install_cache(calls, self.settings_of)
        return Compressed(model, cache=self._describe(calls), notes=(self._note(),))

    def settings_of(self, call: AttentionCall) -> CacheSettings:
        """The cache format of a module's layer."""
        from harness.modules.transforms.cached_attention import CacheSettings

        if call.layer in self.skip_layers:
            return CacheSettings(None, None)
        keys, values = self._bits
        return CacheSettings(self._part(self.keys, keys, self.flush_keys), self._part(self.values, values, False))

    @property
    def _bits(self) -> tuple[int | None, int | None]:
        """Bits of keys and of values; None: FP8, or full precision."""
        return self.key_bits or self.bits, self.value_bits or self.bits

    def _part(self, scales: Scales, bits: int | None, flush: bool) -> CachePart | None:
        from harness.numerics.grids import Grid, grid_of, integer
        from harness.numerics.kv_cache import CachePart

        if self.format == "int" and bits is None:
            return None
        grid: Grid = grid_of(self.format) if bits is None else integer(bits, self.symmetric)
        along: dict[Scales, Literal["tokens", "channels"] | None] = {"channel": "tokens", "token": "channels"}
        return CachePart(grid, along.get(scales), self.group_size, self.residual, flush)

    def _describe(self, calls: Sequence[AttentionCall]) -> CacheFormat:
        """The format; bits are those in the limit of a long text, where the newest tokens do not matter."""
        stored, total = 0.0, 0
        for call in calls:
            settings = self.settings_of(call)
            for x, part in ((call.key, settings.keys), (call.value, settings.values)):
                count = x.shape[1] * x.shape[3]
                stored += count * (part.bits_per_value(x.shape[3]) if part else 8 * x.element_size())
                total += count
        dtype = str(calls[0].key.dtype).removeprefix("torch.")
        keys, values = self._bits
        return CacheFormat(
            keys=self._number_format(self.keys, keys) or FLOATS[dtype],
            values=self._number_format(self.values, values) or FLOATS[dtype],
            bits_per_value=stored / total,
            residual=self.residual,
            skipped_layers=tuple(sorted(set(self.skip_layers))),
            kernel="simulated",
            backend=self.kind,
        )

    def _number_format(self, covers: Scales, bits: int | None) -> NumberFormat | None:
        """The format of keys or values; None: full precision."""
        if self.format == "int" and bits is None:
            return None
        sharing: dict[str, Any] = {"granularity": covers, "group_size": self.group_size}
        if covers == "unscaled":
            sharing = {"scales": "none"}
        elif self.group_size is None:
            sharing = {"granularity": "head"}
        return named_formats()[self.format].record(bits, symmetric=bits is None or self.symmetric, **sharing)

    def _note(self) -> Note:
        text = (
            "the variant computes attention with plain operations instead of a fused kernel; if the reference uses a "
            "fused kernel, rounding differs in addition to the effect of the cache"
        )
        return Note(topic="attention", text=text)
