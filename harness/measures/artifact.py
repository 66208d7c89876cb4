"""The measure ``artifact``: does the saved and reloaded variant equal the model that was measured in memory?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from harness.errors import MeasureError
from harness.measures import Measure
from harness.measures._shared import (
    ROUNDING,
    UNSEEN_CHANGE,
    Count,
    check_range,
    make_counted,
    make_sampled,
    not_finite,
    require,
)
from harness.records import Measurement, Metric, Skipped
from harness.statistics import Interval, mean, mean_interval

if TYPE_CHECKING:
    import pandas as pd

KL_MEAN = Metric(
    name="artifact.kl_mean",
    concern="accounting",
    title="mean KL, in memory vs. artifact",
    unit="nats/token",
    better="lower",
    description="mean KL(in memory‖read back) of the next-token distributions",
    spread="relative",
    spread_size=1.5,
)
KL_MAX = Metric(
    name="artifact.kl_max",
    concern="accounting",
    title="largest KL, in memory vs. artifact",
    unit="nats/token",
    better="lower",
    description="largest KL(in memory‖read back) of any token",
    spread="none",
)
LOGITS = Metric(
    name="artifact.logits_max_abs_diff",
    concern="accounting",
    title="largest logit difference of the artifact",
    unit="logits",
    better="lower",
    description="largest |read back − in memory| of all logits of all scored tokens",
    spread="none",
)
MODULES = Metric(
    name="artifact.modules_changed",
    concern="accounting",
    title="modules that the artifact changes",
    unit="share",
    better="lower",
    description="modules whose outputs differ after reloading by more than rounding",
    spread="counted",
)
TEXTS = Metric(
    name="artifact.texts_changed",
    concern="accounting",
    title="texts that the artifact encodes differently",
    unit="share",
    better="lower",
    description="documents for which the reloaded tokenizer gives different ids",
    spread="counted",
)
LIVE = Metric(
    name="artifact.live_kl_max",
    concern="accounting",
    title="largest KL caused by saving, in memory",
    unit="nats/token",
    better="lower",
    description="largest KL(before‖after saving) of any token: the effect of saving on the model in memory",
    spread="none",
)
BYTES = Metric(
    name="artifact.bytes",
    concern="resources",
    title="bytes on disk",
    unit="bytes",
    better="lower",
    description="all files of the artifact",
    spread="counted",
)
BITS = Metric(
    name="artifact.bits_per_weight",
    concern="resources",
    title="bits on disk per weight",
    unit="bits/weight",
    better="lower",
    description="bits of the weight files on disk per parameter",
    spread="counted",
)
READ_BACK = (KL_MEAN, KL_MAX, LOGITS, MODULES, TEXTS)
COLUMNS = ("part", "name", "document", "kl", "max_abs_diff", "error", "allowed", "count", "text")
WEIGHTS = (".safetensors", ".gguf")
LOADED = "exact by construction: nothing was saved, the variant was loaded from these files, whose hashes are recorded"
SAME = "exact: the same weights, configuration and tokenizer came back, and gave the same logits"


class Artifact(Measure):
    """Whether the artifact equals the model that was measured: saved, reloaded in a fresh process, compared.

    For a variant compressed in this run, on the first 8 documents of the suite (64 tokens each). A variant loaded from
    files without further steps is its own artifact: zero by construction, but for texts if its tokenizer is not the
    reference's, whose ids are then compared. If nothing was saved, or it cannot be
    reloaded, the metrics that depend on it are Skipped with the reason, and a rule on them is an error.
    """

    table: ClassVar[str] = "artifact"
    metrics: ClassVar[tuple[Metric, ...]] = (*READ_BACK, LIVE, BYTES, BITS)
    columns: ClassVar[tuple[str, ...] | None] = COLUMNS

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Compute all metrics. Raises MeasureError for a table that no probe wrote, or a KL below −1e-5."""
        require(table, COLUMNS, "artifact")
        parts = set(table["part"])
        if reasons := [str(text) for text in table.loc[table["part"] == "none", "text"]]:
            return [Skipped(measure=metric.name, reason=reasons[0]) for metric in self.metrics]
        if "checkpoint" in parts:
            files = int((table["part"] == "file").sum())
            texts = _texts(table) if "text" in parts else _count_exactly(TEXTS, 0.0, LOADED, max(files, 1))
            others = (metric for metric in (*READ_BACK, LIVE) if metric is not TEXTS)
            return [*(_count_exactly(each, 0.0, LOADED, max(files, 1)) for each in others), texts, *_sizes(table)]
        if refused := [str(text) for text in table.loc[table["part"] == "refused", "text"]]:
            results: list[Measurement | Skipped] = [Skipped(measure=m.name, reason=refused[0]) for m in READ_BACK]
        else:
            results = [*_tokens(table), _modules(table), _texts(table)]
        return [*results, _measure_live(table), *_sizes(table)]


def _tokens(table: pd.DataFrame) -> list[Measurement | Skipped]:
    rows = table[table["part"] == "reloaded"]
    metrics = (KL_MEAN, KL_MAX, LOGITS)
    if broken := _unusable(rows, metrics, "the artifact or the model in memory"):
        return broken
    kl, documents = rows["kl"].to_numpy(np.float64), rows["document"].to_numpy()
    count = Count(len(rows), len(np.unique(documents)))
    largest = float(rows["max_abs_diff"].max())
    if _is_same(table) and not kl.any() and largest == 0:
        return [_count_exactly(metric, 0.0, SAME, count.observations, count.clusters) for metric in metrics]
    value, around = mean(kl), mean_interval(kl, documents, skewed=True, largest=UNSEEN_CHANGE)
    interval = around and Interval(max(around.low, min(0.0, value)), around.high, around.method)
    return [
        make_sampled(KL_MEAN, "mean over tokens", count, change=value, interval=interval),
        make_sampled(KL_MAX, "maximum over tokens; a maximum has no interval", count, change=float(kl.max())),
        make_sampled(LOGITS, "maximum over tokens; a maximum has no interval", count, change=largest),
    ]


def _is_same(table: pd.DataFrame) -> bool:
    """Whether weights, configuration and tokenizer came back with the same hashes."""
    same = table[table["part"] == "same"]
    return set(same["name"]) == {"weights", "config", "tokenizer"} and bool((same["count"] == 1).all())


def _unusable(rows: pd.DataFrame, metrics: Sequence[Metric], whose: str) -> list[Measurement | Skipped]:
    """Skipped results if there is no token, or one without a finite number; else empty."""
    if rows.empty:
        return [Skipped(measure=metric.name, reason="no document of the suite was scored") for metric in metrics]
    bad = ~np.isfinite(rows[["kl", "max_abs_diff"]].to_numpy(np.float64)).all(axis=1)
    if bad.any():
        what = f"{bad.sum()} of {len(rows)} tokens have logits of {whose} that are NaN or infinite"
        count = Count(len(rows), int(rows["document"].nunique()))
        return [not_finite(metric, "variant", what, count) for metric in metrics]
    check_range(rows, "kl", -ROUNDING, np.inf)
    check_range(rows, "max_abs_diff", 0.0, np.inf)
    return []


def _modules(table: pd.DataFrame) -> Measurement | Skipped:
    rows = table[table["part"] == "reloaded_module"]
    if rows.empty:
        return Skipped(measure=MODULES.name, reason="no module was compared")
    changed = rows[~(rows["error"] <= rows["allowed"])]
    first = f", {changed['name'].iloc[0]} first" if len(changed) else ""
    what = f"exact: {len(changed)} of {len(rows)} modules{first}"
    return _count_exactly(MODULES, len(changed) / len(rows), what, len(rows))


def _texts(table: pd.DataFrame) -> Measurement | Skipped:
    rows = table[table["part"] == "text"]
    if rows.empty:
        return Skipped(measure=TEXTS.name, reason="no document of the suite was encoded")
    changed = int((rows["count"] != 0).sum())
    return _count_exactly(TEXTS, changed / len(rows), f"exact: {changed} of {len(rows)} documents", len(rows))


def _measure_live(table: pd.DataFrame) -> Measurement | Skipped:
    if reasons := [str(text) for text in table.loc[table["part"] == "live_refused", "text"]]:
        return Skipped(measure=LIVE.name, reason=reasons[0])
    rows = table[table["part"] == "live"]
    if broken := _unusable(rows, (LIVE,), "the model in memory"):
        nothing = Skipped(measure=LIVE.name, reason="nothing was saved, so the model in memory was not compared again")
        return nothing if rows.empty else broken[0]
    count = Count(len(rows), int(rows["document"].nunique()))
    return make_sampled(LIVE, "maximum over tokens; a maximum has no interval", count, change=float(rows["kl"].max()))


def _sizes(table: pd.DataFrame) -> list[Measurement | Skipped]:
    files = table[table["part"] == "file"]
    parameters = table.loc[table["part"] == "parameters", "count"]
    if files.empty:
        return [Skipped(measure=metric.name, reason="there are no files") for metric in (BYTES, BITS)]
    if len(parameters) != 1 or int(parameters.iloc[0]) <= 0:
        raise MeasureError(f"the artifact table has the parameters {parameters.tolist()}, expected one number above 0")
    weights = files[files["name"].str.endswith(WEIGHTS)]
    count = Count(len(files), 0)
    bits = 8 * int(weights["count"].sum()) / int(parameters.iloc[0])
    return [
        make_counted(BYTES, f"exact: {len(files)} files", count, variant=float(files["count"].sum())),
        make_counted(BITS, f"exact: {len(weights)} weight files, headers included", count, variant=bits),
    ]


def _count_exactly(metric: Metric, value: float, what: str, count: int, clusters: int = 0) -> Measurement:
    return make_counted(metric, what, Count(count, clusters), change=value)
