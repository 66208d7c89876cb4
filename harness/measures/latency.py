"""The measure ``latency``: speed of the variant relative to the reference, with the noise of the machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from harness.errors import MeasureError
from harness.measures import ExtraWork, Measure
from harness.measures._shared import Count, make_sampled, require
from harness.records import Measurement, Metric, NoiseFloor, Skipped
from harness.statistics import Interval
from harness.statistics.interval import t_quantile, z_quantile

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Positive = Annotated[int, Field(gt=0)]

SPEEDS = {
    "prefill": Metric(
        name="latency.prefill_tokens_per_second",
        concern="resources",
        units="timing blocks",
        title="prefill speed",
        unit="tokens/second",
        better="higher",
        description="prompt tokens processed per second, median over blocks",
        summary="speed",
    ),
    "decode": Metric(
        name="latency.decode_tokens_per_second",
        concern="resources",
        units="timing blocks",
        title="decode speed",
        unit="tokens/second",
        better="higher",
        description="tokens generated per second with the key-value cache, median over blocks",
        summary="speed",
    ),
    "first_token": Metric(
        name="latency.time_to_first_token_ms",
        concern="resources",
        units="timing blocks",
        title="time to first token",
        unit="milliseconds",
        better="lower",
        description="from the prompt to the first generated token, median over blocks",
    ),
}
RATIO = Metric(
    name="latency.ratio",
    concern="resources",
    units="timing blocks",
    title="time, variant over reference",
    unit="ratio",
    better="lower",
    neutral=1.0,
    description="time of the variant / time of the reference, median over blocks A B B A",
    spread="log",
    spread_size=0.05,
)
FLOOR = Metric(
    name="latency.floor",
    concern="resources",
    units="timing blocks",
    title="time, reference over itself",
    unit="ratio",
    better="neither",
    neutral=1.0,
    description="the same ratio of the reference against itself: the timing noise of this machine",
)
SIMULATED = "the variant's compressed weights are held as floats, so its speed says nothing about their format"
FLOOR_REASON = "the reference timed against itself shows the noise of the machine, not the speed of the variant"
COLUMNS = ("phase", "repeat", "side", "order", "batch", "tokens", "seconds", "simulated")
NOT_TIMED = {"decode": "the variant or the reference has no key-value cache"}
SEED = 1_729
DRAWS = 4_999
FEWEST_BLOCKS = 6
"""With fewer blocks not even the smallest and the largest value bound the median at 95 % (1 − 2^(1−5) = 0.9375)."""


@dataclass(frozen=True)
class TimedBlocks:
    """Seconds of blocks A B B A of one phase: arrays [blocks, 2], ``first`` of A and ``second`` of B."""

    first: Floats
    second: Floats

    def log_ratios(self) -> Floats:
        """ln(B/A) of each block: the log of the geometric mean of its two ratios, in which a steady drift cancels."""
        log_ratios: Floats = (np.log(self.second) - np.log(self.first)).mean(axis=1)
        return log_ratios


class Latency(Measure):
    """Speed of the variant relative to the reference, and the timing noise of the machine.

    Ratios come from blocks A B B A; their interval is a bootstrap over runs of neighbouring blocks, because noise comes
    in bursts. A variant whose compressed weights are held as floats is timed and reported, but not judged.
    """

    table: ClassVar[str] = "timings"
    metrics: ClassVar[tuple[Metric, ...]] = (*SPEEDS.values(), RATIO, FLOOR)
    columns: ClassVar[tuple[str, ...] | None] = None  # all: tables of older runs lack what disturbed them
    own_floors: ClassVar[tuple[str, ...]] = (RATIO.name,)

    repeats: Positive = Field(default=20, description="timing blocks A B B A, each with two calls per side")
    warmup: Annotated[int, Field(ge=0)] = Field(default=2, description="untimed warm-up calls of each model")
    prompt_tokens: Positive = Field(
        default=128, description="prompt length in tokens; random ids, the same in every run"
    )
    new_tokens: Positive = Field(default=32, description="tokens generated greedily after the first one")
    batch: Positive = Field(default=1, description="batch size: prompts per call")

    def sample_size(self, documents: int | None) -> int | None:
        """One observation per block A B B A."""
        return self.repeats

    def work(self, documents: int | None) -> ExtraWork:
        """Timing blocks, by which the time of an earlier run is scaled."""
        return ExtraWork(calls=self.repeats)

    def probe_settings(self) -> dict[str, Any]:
        """All settings: the probe takes the times, the measure only compares them."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Compute all metrics; a phase that was not timed is Skipped.

        Raises MeasureError for incomplete blocks and for times that are not positive.
        """
        require(table, COLUMNS, "timings")
        results: list[Measurement | Skipped] = []
        for phase, speed in SPEEDS.items():
            rows = table[table["phase"] == phase]
            pairs, floor = _blocks(rows, "variant"), _blocks(rows, "floor")
            if pairs is None:
                reason = NOT_TIMED.get(phase, f"the phase {phase} was not timed")
                results.append(Skipped(measure=speed.name, reason=reason))
                results.append(Skipped(measure=RATIO.name, reason=reason, labels={"phase": phase}))
                continue
            results += [_speed(speed, phase, pairs, _tokens(rows)), _ratio(RATIO, phase, pairs, floor)]
            if floor is not None:
                noise = _ratio(FLOOR, phase, floor, None)
                results.append(noise.model_copy(update={"not_judged": FLOOR_REASON}))
        results = [_add_disturbances(one, table) if isinstance(one, Measurement) else one for one in results]
        if not table["simulated"].any():
            return results
        return [_mark_not_judged(one) if isinstance(one, Measurement) else one for one in results]


def block_interval(blocks: int, statistic: Sequence[Floats], confidence: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of median(x) or, for two arrays x and y by block, of median(y) − median(x).

    Circular block bootstrap (Politis & Romano 1992) over runs of ⌈√blocks⌉ neighbouring blocks from a fixed seed; both
    ends are moved away from the estimate by the factor t_{m−1}/z, m = blocks / length, because so few runs of blocks
    estimate their own spread poorly. Measured with an autocorrelation of 0.5 between blocks: coverage 92 to 96 %, while
    runs of ⌈blocks^(1/3)⌉ without t cover 71 to 91 %. None for fewer than ``FEWEST_BLOCKS`` blocks.
    """
    if blocks < FEWEST_BLOCKS:
        return None
    length = math.ceil(math.sqrt(blocks))
    starts = np.random.default_rng(SEED).integers(blocks, size=(DRAWS, math.ceil(blocks / length)))
    drawn = ((starts[:, :, None] + np.arange(length)) % blocks).reshape(DRAWS, -1)[:, :blocks]
    medians = [np.median(values[drawn], axis=1) for values in statistic]
    ordered = np.sort(medians[-1] - medians[0] if len(medians) == 2 else medians[0])
    rank = max(math.floor((1 - confidence) / 2 * (DRAWS + 1)), 1)
    found = [float(np.median(values)) for values in statistic]
    value, tail = found[-1] - found[0] if len(found) == 2 else found[0], (1 + confidence) / 2
    wider = t_quantile(tail, blocks / length - 1) / z_quantile(tail)
    return value + wider * (float(ordered[rank - 1]) - value), value + wider * (float(ordered[-rank]) - value)


def _blocks(rows: pd.DataFrame, second: str) -> TimedBlocks | None:
    """The blocks whose B calls are of the side ``second``; None if there are none."""
    repeats = rows.loc[rows["side"] == second, "repeat"].unique()
    chosen = rows[rows["repeat"].isin(repeats)].sort_values(["repeat", "order"])
    if chosen.empty:
        return None
    sides = chosen["side"].to_numpy().reshape(-1, 4) if len(chosen) % 4 == 0 else np.empty((0, 4))
    if len(sides) != len(repeats) or not (sides == ["reference", second, second, "reference"]).all():
        phase = chosen["phase"].iloc[0]
        raise MeasureError(f"timings of {phase}: found a block that is not reference, {second}, {second}, reference")
    seconds = chosen["seconds"].to_numpy(dtype=np.float64).reshape(-1, 4)
    if not (np.isfinite(seconds) & (seconds > 0)).all():
        raise MeasureError(f"timings: found {seconds.min()} s, expected finite times above 0 of a monotonic clock")
    return TimedBlocks(seconds[:, [0, 3]], seconds[:, [1, 2]])


def _tokens(rows: pd.DataFrame) -> int:
    """Tokens of one call, the same in every call."""
    tokens = rows["tokens"].unique()
    if len(tokens) != 1:
        raise MeasureError(f"timings: found calls of {sorted(map(int, tokens))} tokens, expected the same work in each")
    return int(tokens[0])


def _speed(metric: Metric, phase: str, blocks: TimedBlocks, tokens: int) -> Measurement:
    """Medians over blocks of the mean of a side's two calls in a block."""

    def speed(seconds: Floats) -> Floats:
        speeds: Floats = (1000 * seconds if phase == "first_token" else tokens / seconds).mean(axis=1)
        return speeds

    on_reference, on_variant = speed(blocks.first), speed(blocks.second)
    count = len(on_reference)
    reference, variant = float(np.median(on_reference)), float(np.median(on_variant))
    return make_sampled(
        metric,
        "median over blocks A B B A of the mean of two calls",
        Count(4 * count, count),
        reference=reference,
        variant=variant,
        change=variant - reference,
        interval=_interval(block_interval(count, [on_reference, on_variant]), variant - reference),
        variant_interval=_interval(block_interval(count, [on_variant]), variant),
    )


def _ratio(metric: Metric, phase: str, blocks: TimedBlocks, floor: TimedBlocks | None) -> Measurement:
    logs = blocks.log_ratios()
    value, ends = math.exp(np.median(logs)), block_interval(len(logs), [logs])
    interval = _interval((math.exp(ends[0]), math.exp(ends[1])) if ends else None, value)
    what = "exp of the median over blocks A B B A of ln(B/A)"
    against_itself = block_interval(len(floor.first), [floor.log_ratios()]) if floor is not None else None
    noise = None
    if floor is not None and against_itself is not None:
        low, high = math.exp(against_itself[0]), math.exp(against_itself[1])
        what += f"; reference against itself: half-width {(high - low) / 2:.4g}"
        reach = max(abs(low - 1), abs(high - 1))
        noise = NoiseFloor(value=reach, condition="timing the reference against itself", documents=len(floor.first))
    measurement = make_sampled(
        metric,
        what,
        Count(2 * len(logs), len(logs)),
        change=value,
        interval=interval,
        labels={"phase": phase},
    )
    return measurement.model_copy(update={"floor": noise})


def _interval(ends: tuple[float, float] | None, value: float) -> Interval | None:
    return ends and Interval(min(ends[0], value), max(ends[1], value), "circular block bootstrap")


def _mark_not_judged(measurement: Measurement) -> Measurement:
    labels = measurement.labels | {"kernel": "simulated"}
    return measurement.model_copy(update={"labels": labels, "not_judged": measurement.not_judged or SIMULATED})


def _add_disturbances(measurement: Measurement, table: pd.DataFrame) -> Measurement:
    """What the operating system counted while the times were taken; tables of older runs say nothing of it."""
    said = {name: table[name].iloc[0] for name in ("disturbed", "unobservable") if name in table}
    unseen = said.get("unobservable")
    method = f"{measurement.method}; not observable here: {unseen}" if unseen else measurement.method
    return measurement.model_copy(update={"method": method, "disturbed": said.get("disturbed", "")})
