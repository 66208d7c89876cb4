"""The measure ``experts``: expert coverage by calibration data and routing changes of mixture-of-experts models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.measures import Measure
from harness.measures._shared import Count, make_counted, make_sampled, require
from harness.records import Measurement, Metric, Skipped

if TYPE_CHECKING:
    import pandas as pd

UNREACHED = Metric(
    name="experts.unreached",
    concern="quantization_coverage",
    title="experts without calibration tokens",
    unit="experts",
    better="lower",
    description="experts to which the finished variant routes no token of the calibration documents",
)
UNCALIBRATED = Metric(
    name="experts.uncalibrated_share",
    concern="quantization_coverage",
    title="routings to experts without calibration",
    unit="share",
    better="lower",
    description="share of the variant's routings (evaluation documents) that go to experts without calibration tokens",
)
UNUSED = Metric(
    name="experts.unused",
    concern="quantization_coverage",
    title="experts without tokens",
    unit="experts",
    better="lower",
    description="experts to which no token of the evaluation documents is routed",
)
AGREEMENT = Metric(
    name="experts.agreement",
    title="same expert for a token",
    unit="share",
    better="higher",
    neutral=1.0,
    description="share of the variant's (token, expert) routings that the reference makes, too",
)
WORST = Metric(
    name="experts.agreement_worst",
    title="same expert for a token, worst layer",
    unit="share",
    better="higher",
    neutral=1.0,
    description="the same, in the MoE layer where it is smallest",
)
COLUMNS = ("side", "module", "expert", "tokens", "agreeing", "calibration")
NAMED = 32
"""How many experts a label lists individually."""


class Experts(Measure):
    """Mixture-of-experts coverage: experts that calibration never reached, unused experts, changed routing.

    A routing is one token assigned to one expert. Counts cover all tokens together and have no interval, so a rule on
    shares needs ``decide: point``. Skipped on dense models.
    """

    table: ClassVar[str] = "experts"
    metrics: ClassVar[tuple[Metric, ...]] = (UNREACHED, UNCALIBRATED, UNUSED, AGREEMENT, WORST)
    columns: ClassVar[tuple[str, ...] | None] = COLUMNS

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """Compute all metrics; what is not known is Skipped with the reason."""
        require(table, COLUMNS, "experts")
        rows = table[table["side"] != "none"]
        sides = {side: rows[rows["side"] == side] for side in ("reference", "variant")}
        if empty := [side for side, part in sides.items() if part.empty]:
            what = f"the {empty[0]} is" if len(empty) == 1 else "the models are"
            return _skip_all(self.metrics, f"{what} dense: no mixture of experts was found")
        if not table.equals(table.drop_duplicates(["side", "module", "expert"])):
            return _skip_all(self.metrics, "the table names experts twice")
        variant = sides["variant"]
        unknown = {side: part[part["tokens"] < 0] for side, part in sides.items()}
        missing = next((f"{part['module'].iloc[0]} of the {side}" for side, part in unknown.items() if len(part)), "")
        reason = f"it could not be determined which tokens are routed to the experts of {missing}"
        return [
            _measure_unreached(variant),
            _skip(UNCALIBRATED, reason) if missing else _measure_uncalibrated(variant),
            _skip(UNUSED, reason) if missing else _measure_unused(sides),
            *([_skip(AGREEMENT, reason), _skip(WORST, reason)] if missing else _agreement(variant)),
        ]


def _measure_unreached(variant: pd.DataFrame) -> Measurement | Skipped:
    if (variant["calibration"] < 0).any():
        return _skip(UNREACHED, _explain_not_fitted(variant))
    left = variant[variant["calibration"] == 0]
    fewest = variant["calibration"].min()
    what = f"exact count of {len(variant)} experts; the one with fewest was given {fewest} calibration tokens"
    labels = {"experts": _list_experts(left)} if len(left) else {}
    return _count_exactly(UNREACHED, what, variant, float(len(left)), labels)


def _measure_uncalibrated(variant: pd.DataFrame) -> Measurement | Skipped:
    if (variant["calibration"] < 0).any():
        return _skip(UNCALIBRATED, _explain_not_fitted(variant))
    total = int(variant["tokens"].sum())
    if not total:
        return _skip(UNCALIBRATED, "no token of these documents was routed to any expert")
    gone = int(variant["tokens"][variant["calibration"] == 0].sum())
    if not (variant["calibration"] == 0).any():
        return _count_exactly(UNCALIBRATED, "exact: calibration reached every expert", variant, 0.0, {})
    what = f"{gone} of {total} routings; no interval"
    return make_sampled(UNCALIBRATED, what, Count(total, 0), change=gone / total)


def _measure_unused(sides: dict[str, pd.DataFrame]) -> Measurement:
    left = {side: part[part["tokens"] == 0] for side, part in sides.items()}
    reference, variant = float(len(left["reference"])), float(len(left["variant"]))
    change = variant - reference
    return make_counted(
        UNUSED,
        f"exact count of {len(sides['variant'])} experts",
        Count(int(sides["variant"]["tokens"].sum()), 0),
        reference=reference,
        variant=variant,
        change=change,
        labels={"experts": _list_experts(left["variant"])} if variant else {},
    )


def _agreement(variant: pd.DataFrame) -> list[Measurement | Skipped]:
    if (variant["agreeing"] < 0).any():
        reason = "if experts are separate modules, only their token counts are known, not which tokens they receive"
        return [_skip(metric, reason) for metric in (AGREEMENT, WORST)]
    total = int(variant["tokens"].sum())
    sums = variant.groupby("module", sort=False)[["agreeing", "tokens"]].sum()
    sums = sums[sums["tokens"] > 0]
    if not total:
        return [_skip(metric, "no token was routed to any expert") for metric in (AGREEMENT, WORST)]
    agreeing = int(variant["agreeing"].sum())
    if agreeing == total:
        exact = f"exact: all {total} routings are the same on both sides"
        return [_count_exactly(metric, exact, variant, 1.0, {}) for metric in (AGREEMENT, WORST)]
    shares = sums["agreeing"] / sums["tokens"]
    worst = str(shares.idxmin())
    whole = f"{agreeing} of {total} routings; no interval"
    least = f"smallest of {len(shares)} mixtures; no interval"
    return [
        make_sampled(AGREEMENT, whole, Count(total, 0), change=agreeing / total),
        make_sampled(WORST, least, Count(total, 0), change=float(shares.min()), labels={"module": worst}),
    ]


def _count_exactly(
    metric: Metric, what: str, variant: pd.DataFrame, value: float, labels: dict[str, str]
) -> Measurement:
    tokens = int(variant["tokens"].clip(lower=0).sum())
    return make_counted(metric, what, Count(tokens, 0), change=value, labels=labels)


def _list_experts(rows: pd.DataFrame) -> str:
    """Experts by mixture: "model.layers.0.mlp.experts: 3, 5"."""
    some = rows.iloc[:NAMED]
    parts = [f"{module}: {', '.join(map(str, part['expert']))}" for module, part in some.groupby("module", sort=False)]
    return "; ".join(parts) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")


def _explain_not_fitted(variant: pd.DataFrame) -> str:
    if (variant["calibration"] < 0).all():
        return "no step of the variant uses calibration documents"
    return f"the calibration tokens of {variant[variant['calibration'] < 0]['module'].iloc[0]} are not known"


def _skip(metric: Metric, reason: str) -> Skipped:
    return Skipped(measure=metric.name, reason=reason)


def _skip_all(metrics: Sequence[Metric], reason: str) -> list[Measurement | Skipped]:
    return [_skip(metric, reason) for metric in metrics]
