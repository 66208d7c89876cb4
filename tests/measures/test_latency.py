"""The measure of latency on hand-made timings: known ratios, drift, noise, and what must not be judged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.errors import MeasureError
from harness.measures.latency import DRAWS, Latency, block_interval
from harness.records import Measurement, Skipped
from tests.helpers.results import measurement

Seconds = Any


def block(repeat: int, side: str, seconds: Seconds, phase: str = "prefill", tokens: int = 128) -> list[dict[str, Any]]:
    """Four rows A B B A with the given seconds."""
    sides = ("reference", side, side, "reference")
    return [
        {"phase": phase, "repeat": repeat, "side": s, "order": i, "batch": 1, "tokens": tokens, "seconds": t,
         "simulated": False}
        for i, (s, t) in enumerate(zip(sides, seconds, strict=True))
    ]  # fmt: skip


def timings(
    reference: Seconds, variant: Seconds, floor: Seconds = (), phase: str = "prefill", tokens: int = 128
) -> pd.DataFrame:
    """Blocks whose A calls take reference[i] and B calls variant[i]; floor: seconds of B in blocks A A."""
    rows = [
        block(i, "variant", (a, b, b, a), phase, tokens)
        for i, (a, b) in enumerate(zip(reference, variant, strict=True))
    ]
    rows += [
        block(len(reference) + i, "floor", (a, b, b, a), phase, tokens)
        for i, (a, b) in enumerate(zip(reference[: len(floor)], floor, strict=True))
    ]
    return pd.DataFrame([row for four in rows for row in four])


def measure(table: pd.DataFrame) -> dict[str, Measurement | Skipped]:
    return {
        (one.name if isinstance(one, Measurement) else one.measure).removeprefix("latency.")
        + "".join(f" {value}" for value in one.labels.values()): one
        for one in Latency().measure(table)
    }


def noisy(n: int = 20, seed: int = 0, sd: float = 0.02) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, sd, n))


def test_a_variant_that_takes_twice_as_long_has_the_ratio_two() -> None:
    a = 0.5 * noisy()
    found = measure(timings(a, 2 * a, a))
    ratio = measurement(found["ratio prefill"])
    assert ratio.change == pytest.approx(2.0)
    assert (ratio.low, ratio.high) == pytest.approx((2.0, 2.0))
    assert (ratio.neutral, ratio.better, ratio.unit, ratio.not_judged) == (1.0, "lower", "ratio", "")
    assert (ratio.n, ratio.clusters) == (40, 20)


def test_speeds_are_medians_in_tokens_per_second_and_milliseconds() -> None:
    a, b = noisy(21, 1) * 0.25, noisy(21, 2) * 0.5
    found = measure(
        pd.concat(
            [
                timings(a, b, tokens=128),
                timings(a, b, phase="decode", tokens=32),
                timings(a, b, phase="first_token", tokens=1),
            ]
        )
    )
    prefill = measurement(found["prefill_tokens_per_second"])
    assert prefill.reference == pytest.approx(np.median(128 / a))
    assert prefill.variant == pytest.approx(np.median(128 / b))
    assert prefill.change == pytest.approx(np.median(128 / b) - np.median(128 / a))
    assert prefill.variant_low is not None
    assert prefill.variant_low < np.median(128 / b) < prefill.variant_high  # type: ignore[operator]
    assert measurement(found["decode_tokens_per_second"]).reference == pytest.approx(np.median(32 / a))
    first = measurement(found["time_to_first_token_ms"])
    assert (first.reference, first.variant) == pytest.approx((np.median(a) * 1000, np.median(b) * 1000))
    assert (prefill.better, first.better) == ("higher", "lower")
    assert {name for name in found if name.startswith("ratio")} == {
        "ratio prefill",
        "ratio decode",
        "ratio first_token",
    }


def test_a_steady_drift_cancels_within_each_block() -> None:
    """Every call takes 3 % longer than the one before, as on a machine that heats up; the sides are equal."""
    clock = iter(1.03 ** np.arange(200))
    rows = [row for i in range(12) for row in block(i, "variant", [next(clock) for _ in range(4)])]
    ratio = measurement(measure(pd.DataFrame(rows))["ratio prefill"])
    assert ratio.change == pytest.approx(1.0, abs=1e-12)
    assert (ratio.low, ratio.high) == pytest.approx((1.0, 1.0))


def test_the_floor_is_shown_and_never_judged() -> None:
    a, floor = noisy(20, 1), noisy(20, 2)
    found = measure(timings(a, 1.5 * a, floor))
    one = measurement(found["floor prefill"])
    assert one.change == pytest.approx(math.exp(np.median(np.log(floor / a))))
    assert one.not_judged
    assert one.better == "neither"
    assert one.low is not None
    assert one.high is not None
    half_width = f"half-width {(one.high - one.low) / 2:.4g}"
    assert half_width in measurement(found["ratio prefill"]).method
    assert "floor prefill" not in measure(timings(a, a))


def test_a_simulated_variant_is_shown_and_not_judged() -> None:
    table = timings(noisy(), noisy(seed=1), noisy(seed=2)).assign(simulated=True)
    found = [one for one in measure(table).values() if isinstance(one, Measurement)]
    assert len(found) == 3
    for one in found:
        assert one.labels["kernel"] == "simulated"
        assert one.not_judged
        assert one.change is not None
    assert "held as floats" in next(one.not_judged for one in found if one.name == "latency.ratio")
    assert all("kernel" not in one.labels for one in measure(timings(noisy(), noisy())).values())


def test_what_disturbed_the_machine_is_on_every_number() -> None:
    a = noisy()
    table = timings(a, a, a).assign(disturbed="swapping", unobservable="thermal throttling")
    found = [one for one in measure(table).values() if isinstance(one, Measurement)]
    assert {one.disturbed for one in found} == {"swapping"}
    assert all("not observable here: thermal throttling" in one.method for one in found)
    older = [one for one in measure(timings(a, a, a)).values() if isinstance(one, Measurement)]
    assert [one.disturbed for one in older] == [""] * len(found)


def test_a_phase_without_times_is_skipped_with_the_reason() -> None:
    found = measure(timings(noisy(), noisy()))
    for name in ("decode_tokens_per_second", "ratio decode"):
        one = found[name]
        assert isinstance(one, Skipped)
        assert "key-value cache" in one.reason
    assert isinstance(found["time_to_first_token_ms"], Skipped)


def test_too_few_blocks_have_no_interval() -> None:
    for n in (1, 5):
        ratio = measurement(measure(timings(noisy(n), noisy(n, 1)))["ratio prefill"])
        assert (ratio.low, ratio.high) == (None, None)
        assert ratio.change is not None
    assert measurement(measure(timings(noisy(6), noisy(6, 1)))["ratio prefill"]).low is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.iloc[:-1], "not reference, variant, variant, reference"),
        (lambda t: t.assign(side=["variant", "reference"] * (len(t) // 2)), "not reference, variant"),
        (lambda t: t.assign(seconds=0.0), "expected finite times above 0"),
        (lambda t: t.assign(seconds=math.nan), "expected finite times above 0"),
        (lambda t: t.assign(tokens=range(len(t))), "expected the same work in each"),
        (lambda t: t.drop(columns="order"), "lacks the columns order"),
    ],
)
def test_times_that_cannot_be_are_an_error(change: Any, message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        Latency().measure(change(timings(noisy(), noisy())))


def test_rows_in_another_order_give_the_same() -> None:
    table = timings(noisy(), noisy(seed=1), noisy(seed=2))
    assert measure(table) == measure(table.sample(frac=1, random_state=3))


def test_the_interval_is_as_wide_as_theory_says_for_independent_noise() -> None:
    """Half-width of a normal median: z · 1.2533 · sd / √n."""
    widths = []
    for seed in range(5):
        ends = block_interval(200, [np.random.default_rng(seed).normal(size=200)])
        assert ends is not None
        widths.append((ends[1] - ends[0]) / 2)
    expected = stats.norm.ppf(0.975) * math.sqrt(math.pi / 2) / math.sqrt(200)
    assert np.mean(widths) == pytest.approx(expected, rel=0.2)


def test_noise_in_spells_widens_the_interval() -> None:
    rng = np.random.default_rng(5)
    spells = np.repeat(rng.normal(size=20), 10) + rng.normal(0, 0.01, 200)
    wide, narrow = block_interval(200, [spells]), block_interval(200, [rng.permutation(spells)])
    assert wide is not None
    assert narrow is not None
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


def test_the_interval_of_a_difference_keeps_pairs_together() -> None:
    spread = np.random.default_rng(0).normal(size=50)
    ends = block_interval(50, [spread, spread + 1.0])
    assert ends == pytest.approx((1.0, 1.0))


def test_ends_are_the_outer_order_statistics() -> None:
    """Constant but for one block: few draws hold it twice, so the middle of the draws is the constant."""
    assert DRAWS % 2
    assert block_interval(20, [np.array([5.0] + [1.0] * 19)]) == (1.0, 1.0)


def test_the_probe_gets_every_setting() -> None:
    latency = Latency(repeats=7, warmup=1, prompt_tokens=9, new_tokens=3, batch=2)
    assert latency.probe_settings() == latency.model_dump()


def test_neighbouring_blocks_that_share_noise_seldom_hide_the_truth() -> None:
    """Autocorrelation 0.5, 20 blocks; independent resampling of blocks covers about 80 %."""
    generator, hits, naive = np.random.default_rng(6), 0, 0
    for _ in range(200):
        logs = generator.normal(size=60)
        for at in range(1, 60):
            logs[at] += 0.5 * logs[at - 1]
        ends = block_interval(20, [logs[40:]])
        assert ends is not None
        hits += ends[0] <= 0 <= ends[1]
        drawn = np.median(logs[40:][generator.integers(20, size=(200, 20))], axis=1)
        naive += bool(np.quantile(drawn, 0.025) <= 0 <= np.quantile(drawn, 0.975))
    assert hits / 200 >= 0.87
    assert naive / 200 < 0.85
