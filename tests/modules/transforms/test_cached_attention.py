"""Attention to a simulated cache, against a decode loop written from the definition, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.errors import BackendError
from harness.modules.transforms import cached_attention as subject
from harness.modules.transforms.cached_attention import SETTINGS, CacheSettings, cached_attention
from harness.numerics.grids import FP8_E4M3, integer
from harness.numerics.kv_cache import CachePart

B, H, G, S, D = 2, 4, 2, 13, 5
STARTS = (0, 3)


def rounded(numbers: list[float], bits: int, symmetric: bool) -> list[float]:
    low, high = (0.0, max(map(abs, numbers))) if symmetric else (min(numbers), max(numbers))
    if high == low:
        return numbers
    scale = (high - low) / ((2 ** (bits - 1) if symmetric else 2**bits) - 1)
    return [round((x - low) / scale) * scale + low for x in numbers]


def kept(x_SD: list[list[float]], part: CachePart | None, t: int, start: int) -> list[list[float]]:
    """Tokens start … t as the query at t finds them in the cache."""
    if part is None:
        return x_SD[start : t + 1]
    found = []
    for s in range(start, t + 1):
        unit = part.size if part.along == "tokens" and part.size else 1
        group = start + (s - start) // unit * unit
        newest = part.residual
        old = group + unit - 1 <= t - newest
        if part.flush:
            old = (s - start) // newest < (t - start + 1) // newest
        symmetric, bits = part.grid.symmetric, part.grid.bits
        if not old:
            found.append(x_SD[s])
        elif part.along == "tokens":
            columns = [rounded([x_SD[i][d] for i in range(group, group + unit)], bits, symmetric) for d in range(D)]
            found.append([columns[d][s - group] for d in range(D)])
        else:
            size = part.size or D
            pieces = [rounded(x_SD[s][first : first + size], bits, symmetric) for first in range(0, D, size)]
            found.append([x for piece in pieces for x in piece])
    return found


def decoded(
    q: Tensor, k: Tensor, v: Tensor, settings: CacheSettings, cap: float | None, window: int, sinks: list[float]
) -> dict[tuple[int, int, int], list[float]]:
    """Output of every query (text, head, position) of a decode loop."""
    outputs = {}
    for b, start in enumerate(STARTS):
        for h in range(H):
            keys, values = (x[b, h // (H // G)].tolist() for x in (k, v))
            for t in range(start, S):
                seen = zip(kept(keys, settings.keys, t, start), kept(values, settings.values, t, start), strict=True)
                pairs = list(seen)[-window:]
                scores = [0.3 * sum(x * y for x, y in zip(q[b, h, t].tolist(), key, strict=True)) for key, _ in pairs]
                if cap:
                    scores = [cap * math.tanh(score / cap) for score in scores]
                total = sum(map(math.exp, scores)) + (math.exp(sinks[h]) if sinks else 0.0)
                shares = [math.exp(score) / total for score in scores]
                outputs[b, h, t] = [
                    sum(share * value[d] for share, (_, value) in zip(shares, pairs, strict=True)) for d in range(D)
                ]
    return outputs


def module_with(settings: CacheSettings) -> nn.Module:
    module = nn.Module()
    setattr(module, SETTINGS, settings)
    return module.eval()


def tensors(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, heads, S, D, generator=draw, dtype=torch.float64) for heads in (H, G, G))
    return q, k + 3, v


def mask_of(window: int) -> Tensor:
    """[B, 1, S, S], True where a query sees a key; padding sees nothing."""
    order = torch.arange(S)
    near = (order <= order[:, None]) & (order > order[:, None] - window)
    return (near & (order >= torch.tensor(STARTS)[:, None, None]))[:, None]


KEYS4, VALUES3 = CachePart(integer(4, False), "tokens", 4, 0), CachePart(integer(3, False), "channels", 3, 0)
SCHEMES = {
    "kivi without residual": CacheSettings(KEYS4, VALUES3),
    "residual inside a group": CacheSettings(
        CachePart(integer(2, False), "tokens", 4, 3), CachePart(integer(2, False), "channels", 2, 3)
    ),
    "flushed": CacheSettings(CachePart(integer(2, False), "tokens", 2, 4, True), VALUES3),
    "symmetric, the other way round": CacheSettings(
        CachePart(integer(4), "channels", None, 2), CachePart(integer(4), "tokens", 3, 2)
    ),
    "values alone": CacheSettings(None, CachePart(integer(2, False), "channels", 5, 1)),
    "full": CacheSettings(None, None),
}


@pytest.mark.parametrize("budget", [1, 3 * B * H * S, 2**24])
@pytest.mark.parametrize("name", SCHEMES)
def test_a_whole_text_equals_the_decode_loop(name: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "CHUNK_SCORES", budget)
    q, k, v = tensors()
    expected = decoded(q, k, v, SCHEMES[name], None, S, [])
    out, _ = cached_attention(module_with(SCHEMES[name]), q, k, v, mask_of(S), scaling=0.3)
    assert out.shape == (B, S, H, D)
    for (b, h, t), numbers in expected.items():
        assert out[b, t, h].tolist() == pytest.approx(numbers, abs=1e-12), (b, h, t)


def test_windows_soft_caps_sinks_and_additive_masks_change_what_they_should() -> None:
    q, k, v = tensors(1)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    mask = torch.zeros(B, 1, S, S, dtype=torch.float64).masked_fill(~mask_of(6), torch.finfo(torch.float64).min)
    for name in ("kivi without residual", "residual inside a group"):
        expected = decoded(q, k, v, SCHEMES[name], 2.0, 6, sinks.tolist())
        out, _ = cached_attention(
            module_with(SCHEMES[name]), q, k, v, mask, scaling=0.3, softcap=2.0, s_aux=sinks, sliding_window=6
        )
        for (b, h, t), numbers in expected.items():
            assert out[b, t, h].tolist() == pytest.approx(numbers, abs=1e-12), (b, h, t)


def test_no_mask_means_causal_and_no_scaling_means_the_usual_one() -> None:
    q, k, v = (x[:1] for x in tensors())
    module = module_with(SCHEMES["kivi without residual"])
    bare, _ = cached_attention(module, q, k, v, None)
    masked, _ = cached_attention(module, q, k, v, mask_of(S)[:1], scaling=D**-0.5)
    assert torch.equal(bare, masked)


def test_a_mask_may_differ_between_heads() -> None:
    q, k, v = tensors()
    module = module_with(SCHEMES["residual inside a group"])
    both = torch.cat([mask_of(S), mask_of(4), mask_of(S), mask_of(4)], dim=1)
    out, _ = cached_attention(module, q, k, v, both)
    for heads, mask in (([0, 2], mask_of(S)), ([1, 3], mask_of(4))):
        alone, _ = cached_attention(module, q, k, v, mask)
        assert torch.allclose(out[1, 3:, heads], alone[1, 3:, heads], atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    residual=st.integers(0, 9),
    size=st.integers(1, 6),
    split=st.integers(1, S - 1),
    along=st.sampled_from(["tokens", "channels"]),
)
def test_how_a_text_is_cut_into_calls_does_not_matter(residual: int, size: int, split: int, along: str) -> None:
    part = CachePart(integer(2, False), along, size, residual)  # type: ignore[arg-type]
    module, (q, k, v), mask = module_with(CacheSettings(part, part)), tensors(2), mask_of(S)
    whole, _ = cached_attention(module, q, k, v, mask)
    early, _ = cached_attention(module, q[:, :, :split], k[:, :, :split], v[:, :, :split], mask[:, :, :split, :split])
    late, _ = cached_attention(module, q[:, :, split:], k, v, mask[:, :, split:])
    cut = torch.cat([early, late], dim=1)
    for b, start in enumerate(STARTS):
        assert torch.allclose(whole[b, start:], cut[b, start:], atol=1e-13)


def test_a_block_far_from_zero_wastes_no_codes() -> None:
    x = torch.linspace(100.0, 101.0, 4, dtype=torch.float64).reshape(1, 1, 4, 1).expand(1, 1, 4, 3)
    part = CachePart(integer(2, False), "tokens", 4, 0)
    assert torch.allclose(part.quantize(x, torch.zeros(1, dtype=torch.int64)), x, atol=1e-12)
    constant = torch.full((1, 1, 4, 3), 7.25)
    assert torch.equal(part.quantize(constant, torch.zeros(1, dtype=torch.int64)), constant)


def test_fp8_without_scales_is_a_cast() -> None:
    x = torch.randn(1, 2, 6, 5, generator=torch.Generator().manual_seed(0)) * 300
    part = CachePart(FP8_E4M3, None, None, 0)
    expected = x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    assert torch.equal(part.quantize(x, torch.zeros(1, dtype=torch.int64)), expected)
    assert part.bits_per_value(5) == 8


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_not_hidden(bad: float) -> None:
    x = torch.ones(1, 1, 8, 4, dtype=torch.float32)
    x[0, 0, 5, 2] = bad
    for symmetric in (True, False):
        for along in ("tokens", "channels"):
            part = CachePart(integer(4, symmetric), along, 4, 0)
            found = part.quantize(x, torch.zeros(1, dtype=torch.int64))
            assert not found[0, 0, 5, 2].isfinite()
            assert torch.equal(found[0, 0, :4], x[0, 0, :4])


@pytest.mark.parametrize(
    ("part", "channels", "bits"),
    [
        (CachePart(integer(2, False), "tokens", 32, 0), 128, 2 + 32 / 32),
        (CachePart(integer(4, True), "tokens", 64, 0), 128, 4 + 16 / 64),
        (CachePart(integer(4, False), "channels", 32, 0), 80, 4 + 32 * 3 / 80),
        (CachePart(integer(8, True), "channels", None, 0), 80, 8 + 16 / 80),
        (CachePart(FP8_E4M3, "channels", 32, 0), 16, 8 + 16 / 16),
    ],
)
def test_bits_count_scales_and_offsets(part: CachePart, channels: int, bits: float) -> None:
    assert part.bits_per_value(channels) == pytest.approx(bits, rel=1e-15)


def attend(module: nn.Module, **others: object) -> Callable[[], object]:
    q, k, v = tensors()
    return lambda: cached_attention(module, q, k, v, None, **others)  # type: ignore[arg-type]


def test_what_is_not_served_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = module_with(SCHEMES["full"])
    for module, others, message in (
        (nn.Linear(1, 1), {}, "Linear has no cache settings"),
        (ready, {"dropout": 0.1}, "dropout 0.1"),
        (ready, {"position_bias": torch.zeros(1)}, "position_bias"),
    ):
        with pytest.raises(BackendError, match=message):
            attend(module, **others)()
    with monkeypatch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        with pytest.raises(BackendError, match="cannot be compiled"):
            attend(ready)()
    for fields in ((integer(4), "tokens", None, 0, False), (integer(4), "tokens", 4, 6, True)):
        with pytest.raises(ValueError):
            CachePart(*fields)
