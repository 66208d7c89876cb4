"""Sentences: what the verdict means, what broke a rule, what the variant is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.records import Measurement, ModuleFormat, Run, Verdict
from harness.report import display


@dataclass(frozen=True)
class Status:
    """How a status is shown: never by colour alone, always with a mark and a word."""

    name: str
    word: str
    mark: str
    headline: str


STATUSES = {
    "pass": Status("pass", "Pass", "✓", "May ship"),
    "fail": Status("fail", "Fail", "✕", "Must not ship"),
    "inconclusive": Status("inconclusive", "Undecided", "?", "Undecided"),
    "error": Status("error", "Error", "!", "Could not be judged"),
    "skipped": Status("skipped", "Skipped", "–", "Skipped"),
}

_METRICS = {
    "logits.max_abs_diff": "largest logit difference",
    "logits.mean_abs_diff": "mean logit difference",
    "divergence.kl_mean": "mean KL divergence",
    "divergence.kl_p50": "median KL divergence",
    "divergence.kl_p99": "99th percentile of KL",
    "divergence.kl_p999": "99.9th percentile of KL",
    "divergence.kl_max": "largest KL divergence",
    "divergence.reverse_kl_mean": "mean reverse KL divergence",
    "divergence.top1_agreement": "same most likely token",
    "divergence.delta_p_mean": "mean change of p(target)",
    "divergence.delta_p_rms": "RMS change of p(target)",
    "divergence.total_variation": "total variation",
    "perplexity.value": "perplexity",
    "perplexity.ratio": "perplexity ratio",
    "perplexity.nll_delta": "change of NLL",
    "perplexity.bits_per_byte": "bits per byte",
    "calibration.ece": "ECE",
    "calibration.ece_equal_mass": "ECE, equal-mass bins",
    "calibration.squared_error": "squared calibration error",
    "calibration.brier": "Brier score",
    "calibration.gap": "change of over-confidence",
    "calibration_data.overlap": "documents shared with calibration",
    "calibration_data.token_divergence": "divergence of tokens from calibration",
    "calibration_data.token_divergence_floor": "divergence of tokens between halves",
    "calibration_data.outside_range": "inputs outside the calibrated range",
    "calibration_data.outside_range_worst": "most inputs outside the calibrated range",
    "generation.exact_match": "same greedy text",
    "generation.diverged": "greedy texts that part",
    "generation.first_divergence": "equal tokens before texts part",
    "generation.first_divergence_median": "equal tokens before texts part, median",
    "generation.common_prefix": "share of text before texts part",
    "generation.similarity": "likeness of greedy texts",
    "generation.embedding_similarity": "likeness of greedy texts, embedded",
    "hardware.supported": "weights with a kernel",
    "hardware.accelerated": "weights with a kernel in few bits",
    "hardware.cache_supported": "KV cache with a kernel",
    "experts.unreached": "experts without calibration tokens",
    "experts.uncalibrated_share": "routings to experts without calibration",
    "experts.unused": "experts without tokens",
    "experts.agreement": "same expert for a token",
    "experts.agreement_worst": "same expert for a token, worst layer",
    "weights.relative_error": "relative error of a weight",
    "weights.worst": "largest weight error",
    "layers.worst": "largest layer error",
    "layers.relative_error": "relative error",
    "layers.sqnr_db": "SQNR",
    "layers.cosine": "cosine",
    "outliers.channels": "outlier channels",
    "outliers.max_to_median": "channel maximum over median",
    "outliers.kurtosis": "kurtosis",
    "latency.prefill_tokens_per_second": "prefill speed",
    "latency.decode_tokens_per_second": "decode speed",
    "latency.time_to_first_token_ms": "time to first token",
    "latency.ratio": "time, variant over reference",
    "latency.floor": "time, reference over itself",
    "memory.weight_bytes": "stored weights",
    "memory.bits_per_weight": "bits per weight",
    "memory.peak_bytes": "peak memory",
    "memory.kv_bytes_per_token": "KV cache per token",
    "artifact.kl_mean": "mean KL of the artifact from memory",
    "artifact.kl_max": "largest KL of the artifact from memory",
    "artifact.logits_max_abs_diff": "largest logit difference of the artifact",
    "artifact.modules_changed": "modules that the artifact changes",
    "artifact.texts_changed": "texts that the artifact encodes differently",
    "artifact.live_kl_max": "largest KL that saving costs in memory",
    "artifact.bytes": "bytes on disk",
    "artifact.bits_per_weight": "bits on disk per weight",
}
_ORDER = ("fail", "error", "inconclusive", "skipped", "pass")


def metric(name: str) -> str:
    """A metric in words; a name that is not known is its own description."""
    if name in _METRICS:
        return _METRICS[name]
    task = re.fullmatch(r"tasks\.([^.]+)\.(.+)", name)
    return f"{task[1]} {task[2].replace('_', ' ')}" if task else name


def title(name: str) -> str:
    """A metric in words to stand over a paragraph; names of tasks and unknown metrics keep their own
    letters.
    """
    words = metric(name)
    return words[:1].upper() + words[1:] if name in _METRICS else words


def labelled(name: str, labels: dict[str, str]) -> str:
    """A metric with the labels that tell it from others of the same name."""
    inside = ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name


def worst_first(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Blocking rules before advisory ones, within them what needs attention first, else in the order of the
    file.
    """
    return sorted(verdicts, key=lambda verdict: (verdict.level != "block", _ORDER.index(verdict.status)))


def formats(modules: Iterable[ModuleFormat]) -> list[str]:
    """The compressed formats in words, most parameters first: "int4, group 32, simulated"."""
    parameters: dict[str, int] = {}
    for module in modules:
        if module.granularity != "none" or module.backend:
            parameters[stored_as(module)] = parameters.get(stored_as(module), 0) + module.parameters
    return sorted(parameters, key=lambda words: (-parameters[words], words))


def stored_as(module: ModuleFormat) -> str:
    """The format of one module in words."""
    unit = {"none": "", "group": f"group {module.group_size}"}.get(module.granularity, f"per {module.granularity}")
    weight_only = "dequantized in the kernel" if module.kernel == "real" and module.product == "floats" else ""
    parts = [module.format, unit, "simulated" if module.kernel == "simulated" else weight_only]
    return ", ".join(part for part in parts if part)


def points_of(value: float) -> str:
    """A difference of fractions in percentage points, without the unit: for axes that name it."""
    return display.signed(value * 100, 3)


def bits_per_weight(modules: Sequence[ModuleFormat]) -> float | None:
    """Stored bits over parameters of all modules together, or None without modules."""
    parameters = sum(module.parameters for module in modules)
    return 8 * sum(module.stored_bytes for module in modules) / parameters if parameters else None


def find(run: Run, name: str, labels: dict[str, str] | None = None) -> Measurement | None:
    """The measurement of that name; without ``labels`` the first one."""
    matching = (m for m in run.measurements if m.name == name and (labels is None or m.labels == labels))
    return next(matching, None)
