"""Made-up measurements, consistent with the made-up tables."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from harness.records import Measurement
from harness.records.metric import Better


def make_measurements(frames: Mapping[str, pd.DataFrame], scale: float) -> list[Measurement]:
    t = frames["tokens"]
    change = t["variant_nll"] - t["reference_nll"]
    per_document = change.groupby(t["document"]).mean()
    half = 1.97 * float(per_document.std()) / math.sqrt(len(per_document))
    delta, kl = float(change.mean()), float(t["kl"].mean())
    same = float((t["reference_top1"] == t["variant_top1"]).mean())
    cluster = "cluster t by document"

    def single(name: str, unit: str, better: Better, value: float, spread: float, neutral: float = 0.0) -> Measurement:
        ends = {"change": value, "low": value - spread, "high": value + spread}
        described = {"name": name, "unit": unit, "better": better, "basis": "sampled", "method": cluster}
        size = {"n": len(t), "clusters": len(per_document)}
        return Measurement.model_validate(described | ends | size | {"neutral": neutral})

    found = [
        single("logits.mean_abs_diff", "logits", "lower", float(t["mean_abs_diff"].mean()), 0.001),
        Measurement(
            name="logits.max_abs_diff",
            unit="logits",
            better="lower",
            change=float(t["max_abs_diff"].max()),
            basis="sampled",
            method="largest of all tokens",
            n=len(t),
            clusters=len(per_document),
        ),
        single("divergence.kl_mean", "nats/token", "lower", kl, kl * 0.06),
        single("divergence.kl_p99", "nats/token", "lower", float(t["kl"].quantile(0.99)), kl * 0.5),
        single("divergence.top1_agreement", "share", "higher", same, 0.004, neutral=1.0),
        single("divergence.delta_p_mean", "probability", "neither", -0.0021 * scale, 0.0004),
        Measurement(
            name="perplexity.value",
            unit="perplexity",
            better="lower",
            reference=math.exp(t["reference_nll"].mean()),
            variant=math.exp(t["variant_nll"].mean()),
            basis="sampled",
            method="exp of mean NLL",
            n=len(t),
            clusters=len(per_document),
        ),
        Measurement(
            name="perplexity.ratio",
            unit="ratio",
            better="lower",
            neutral=1.0,
            change=math.exp(delta),
            low=math.exp(delta - half),
            high=math.exp(delta + half),
            basis="sampled",
            method=cluster,
            n=len(t),
            clusters=len(per_document),
        ),
    ]
    found += calibration_errors(scale, {"n": len(t), "clusters": len(per_document)})
    fitted = calibration_measurements(len(per_document))
    return found + task_measurements(frames["items"]) + cost_measurements() + fitted


def calibration_errors(scale: float, counts: Mapping[str, int]) -> list[Measurement]:
    """ECE, which no rule may judge, and the Brier score."""
    return [
        Measurement(
            name="calibration.ece",
            unit="probability",
            better="lower",
            reference=0.0121,
            variant=0.0121 + 0.02 * scale,
            change=0.02 * scale,
            basis="sampled",
            method="10 bins of equal width",
            not_judged="the plain ECE is biased upwards",
            n=counts["n"],
            clusters=counts["clusters"],
        ),
        Measurement(
            name="calibration.brier",
            unit="",
            better="lower",
            reference=0.31,
            variant=0.31 + 0.01 * scale,
            change=0.01 * scale,
            low=0.008 * scale,
            high=0.012 * scale,
            basis="sampled",
            method="cluster t by document",
            n=counts["n"],
            clusters=counts["clusters"],
        ),
    ]


def task_measurements(items: pd.DataFrame) -> list[Measurement]:
    found = []
    for (task, metric), rows in items.groupby(["task", "metric"], sort=False):
        reference, variant = float(rows["reference_score"].mean()), float(rows["variant_score"].mean())
        change = variant - reference
        half = 2 * math.sqrt(max(abs(change), 0.01) / len(rows))
        found.append(
            Measurement(
                name=f"tasks.{task}.{metric}",
                unit="share",
                better="higher",
                reference=reference,
                variant=variant,
                change=change,
                low=change - half,
                high=change + half * 0.7,
                n=len(rows),
                clusters=len(rows),
                basis="sampled",
                method="Tango score",
            )
        )
    return found


def calibration_measurements(documents: int) -> list[Measurement]:
    def made(name: str, unit: str, value: float, **labels: str) -> Measurement:
        return Measurement(
            name=f"calibration_data.{name}",
            labels=labels,
            unit=unit,
            better="lower",
            change=value,
            n=documents,
            clusters=documents,
            basis="sampled",
            method="counted",
        )

    module = "model.layers.1.mlp.down_proj"
    return [
        made("overlap", "share", 0.005),
        made("token_divergence", "nats", 0.0213),
        made("token_divergence_floor", "nats", 0.0094),
        made("outside_range", "share", 0.00012, module=module),
        made("outside_range_worst", "share", 0.00012, module=module),
    ]


def cost_measurements() -> list[Measurement]:
    def exact(name: str, unit: str, reference: float, variant: float) -> Measurement:
        ratio = variant / reference
        return Measurement(
            name=name,
            unit=unit,
            better="lower",
            neutral=1.0,
            reference=reference,
            variant=variant,
            change=ratio,
            low=ratio,
            high=ratio,
            n=1,
            clusters=1,
            basis="sampled",
            method="counted",
        )

    simulated = "the variant's weights are simulated: codes are held as floats, so its speed says nothing"
    speeds: tuple[tuple[str, str, Better, float, float], ...] = (
        ("prefill_tokens_per_second", "tokens/s", "higher", 21_300.0, 20_950.0),
        ("decode_tokens_per_second", "tokens/s", "higher", 512.4, 505.9),
        ("time_to_first_token_ms", "ms", "lower", 4.1, 4.2),
    )
    return [
        exact("memory.weight_bytes", "bytes", 7_871_232.0, 2_483_712.0),
        exact("memory.bits_per_weight", "bits", 32.0, 10.1),
        exact("memory.kv_bytes_per_token", "bytes", 2048.0, 2048.0),
        *(
            Measurement(
                name=f"latency.{name}",
                unit=unit,
                better=better,
                neutral=1.0,
                reference=reference,
                variant=variant,
                change=variant / reference,
                low=variant / reference * 0.97,
                high=variant / reference * 1.03,
                n=50,
                clusters=50,
                basis="sampled",
                method="median of interleaved pairs",
                not_judged=simulated,
            )
            for name, unit, better, reference, variant in speeds
        ),
    ]
