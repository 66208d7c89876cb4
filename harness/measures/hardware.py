"""The measure ``hardware``: do the variant's number formats have kernels on the target hardware?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from harness.measures import Measure
from harness.measures._shared import Count, make_counted, require
from harness.numerics.hardware.fit import Fit, Use, cache_kernel, explain_no_cache_kernel, fit, needs_kernel, sentences
from harness.numerics.hardware.profiles import target_names
from harness.plugins import nearest
from harness.records import CacheFormat, Measurement, Metric, NumberFormat, Skipped

if TYPE_CHECKING:
    import pandas as pd

SUPPORTED = Metric(
    name="hardware.supported",
    concern="resources",
    title="weights with a kernel",
    unit="share",
    better="higher",
    neutral=1.0,
    description="share of the compressed weights whose format has a kernel on the target",
    sides=True,
    spread="counted",
)
ACCELERATED = Metric(
    name="hardware.accelerated",
    concern="resources",
    title="weights with a kernel in few bits",
    unit="share",
    better="higher",
    neutral=1.0,
    description="share of the compressed weights whose kernel also multiplies in low precision (faster long prompts)",
    sides=True,
    spread="counted",
)
CACHE = Metric(
    name="hardware.cache_supported",
    concern="resources",
    title="KV cache with a kernel",
    unit="share",
    better="higher",
    neutral=1.0,
    description="1 if attention kernels on the target can read the KV cache in its stored format, else 0",
    sides=True,
    spread="counted",
)
NO_TARGET = "no target is declared; add for example target: cuda-9.0 to the variant file"


class Hardware(Measure):
    """Whether the variant's number formats have kernels on the target hardware, by the table of kernels."""

    table: ClassVar[str] = "weights"
    metrics: ClassVar[tuple[Metric, ...]] = (SUPPORTED, ACCELERATED, CACHE)
    columns: ClassVar[tuple[str, ...] | None] = (
        "side", "module", "type", "parameters", "format", "activations", "backend", "cache",
    )  # fmt: skip

    target: str | None = Field(default=None, examples=["cuda-9.0"])
    """Target hardware (names: harness list); default: the ``target`` of the variant file."""

    @field_validator("target")
    @classmethod
    def _check_target(cls, value: str | None) -> str | None:
        if value is not None and value not in target_names():
            close = nearest(value, target_names())
            hint = f" (did you mean {close}?)" if close else ""
            raise ValueError(f"one of {', '.join(target_names())}{hint}")
        return value

    def with_target(self, target: str | None) -> Measure:
        """This measure with the variant's target, unless it has its own."""
        return self if target is None or self.target is not None else self.model_copy(update={"target": target})

    def obstacle(self) -> str:
        """Without a target there is nothing to look up."""
        return "" if self.target else NO_TARGET

    def sample_size(self, documents: int | None) -> int | None:
        """0: weights are counted, not sampled."""
        return 0

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Compute the shares of the variant, labelled with the target and with the formats without a kernel."""
        require(table, self.columns or (), "weights")
        if self.target is None:
            return [Skipped(measure=metric.name, reason=NO_TARGET) for metric in self.metrics]
        rows = table[table["side"] == "variant"]
        weights = rows[~rows["type"].isin(["kv_cache", "peak"])]
        if weights.empty:
            return [Skipped(measure=metric.name, reason="no weights were listed") for metric in self.metrics]
        return [*_shares(fit(self.target, _uses(weights))), _cache(self.target, rows[rows["type"] == "kv_cache"])]


def _uses(weights: pd.DataFrame) -> Iterator[tuple[str, int, Use]]:
    """The modules that compression changed, in the form that `fit` takes."""
    columns = (weights[name] for name in ("module", "parameters", "format", "activations", "backend"))
    for module, parameters, stored, rounded, backend in zip(*columns, strict=True):
        form = _parse_format(stored)
        inputs = _parse_format(rounded) if rounded else None
        if needs_kernel(form, backend, inputs):
            yield module, int(parameters), Use.of(form, inputs)


@cache
def _parse_format(text: str) -> NumberFormat:
    return NumberFormat.model_validate_json(text)


def _shares(found: Fit) -> list[Measurement | Skipped]:
    if found.unknown or not found.total:
        reason = "; ".join(sentences(found)) if found.unknown else "no weight is compressed"
        return [Skipped(measure=metric.name, reason=reason) for metric in (SUPPORTED, ACCELERATED)]
    labels = {"target": found.target}
    lacking = labels | ({"without": ", ".join(map(str, found.missing))} if found.missing else {})
    how = "; ".join(sentences(found)) or ", ".join(found.kernels)
    return [
        _share(SUPPORTED, found.supported / found.total, found.modules, lacking, how),
        _share(ACCELERATED, found.accelerated / found.total, found.modules, labels, how),
    ]


def _cache(target: str, rows: pd.DataFrame) -> Measurement | Skipped:
    if len(rows) != 1:
        return Skipped(measure=CACHE.name, reason="the format of the key-value cache is not known")
    row, labels = rows.iloc[0], {"target": target}
    if not row["cache"]:
        return _share(CACHE, 1.0, 1, labels, f"stored in {_parse_format(row['format']).name}, not compressed")
    kept = CacheFormat.model_validate_json(row["cache"])
    kernel = cache_kernel(target, kept)
    if kernel is None:
        return _share(CACHE, 0.0, 1, labels | {"without": str(kept)}, explain_no_cache_kernel(target, kept))
    return _share(CACHE, 1.0, 1, labels, kernel.name)


def _share(metric: Metric, share: float, count: int, labels: dict[str, str], how: str) -> Measurement:
    what = f"exact, from the table of kernels: {how}"
    return make_counted(metric, what, Count(count, 0), variant=share, change=share, labels=labels)
