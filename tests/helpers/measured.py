"""Measurements made by hand."""

from __future__ import annotations

from typing import Any

from harness.records import Measurement

KINDS: dict[str, dict[str, Any]] = {
    "ratio": {
        "name": "perplexity.ratio",
        "unit": "ratio",
        "better": "lower",
        "neutral": 1.0,
        "change": 1.0131,
        "low": 1.0102,
        "high": 1.016,
    },
    "agreement": {
        "name": "divergence.top1_agreement",
        "unit": "share",
        "better": "higher",
        "neutral": 1.0,
        "change": 0.95,
        "low": 0.94,
        "high": 0.96,
    },
    "accuracy": {
        "name": "tasks.arc.accuracy",
        "unit": "share",
        "better": "higher",
        "reference": 0.6,
        "variant": 0.59,
        "change": -0.01,
        "low": -0.02,
        "high": 0.005,
        "variant_low": 0.56,
        "variant_high": 0.62,
    },
    "perplexity": {
        "name": "perplexity.value",
        "unit": "perplexity",
        "better": "lower",
        "reference": 10.0,
        "variant": 10.2,
        "change": 0.2,
        "low": 0.1,
        "high": 0.3,
        "variant_low": 9.0,
        "variant_high": 11.0,
    },
    "maximum": {"name": "logits.max_abs_diff", "unit": "logits", "better": "lower", "change": 3.2},
    "bytes": {
        "name": "memory.weight_bytes",
        "unit": "bytes",
        "better": "lower",
        "reference": 4000.0,
        "variant": 1500.0,
        "change": -2500.0,
        "low": -2500.0,
        "high": -2500.0,
        "variant_low": 1500.0,
        "variant_high": 1500.0,
        "basis": "counted",
        "method": "exact count",
        "clusters": 0,
    },
    "gap": {
        "name": "calibration.gap",
        "unit": "probability",
        "better": "neither",
        "change": 0.01,
        "low": 0.005,
        "high": 0.015,
    },
    "sqnr": {
        "name": "layers.sqnr_db",
        "unit": "dB",
        "better": "higher",
        "neutral": 6315.6,
        "infinite_neutral": True,
        "change": 22.0,
        "low": 21.0,
        "high": 23.0,
    },
}


def measured(kind: str, **fields: Any) -> Measurement:
    """A measurement of one of ``KINDS``, with fields replaced."""
    common: dict[str, Any] = {"n": 5000, "clusters": 50, "basis": "sampled", "method": "mean"}
    return Measurement(**(common | KINDS[kind] | fields))
