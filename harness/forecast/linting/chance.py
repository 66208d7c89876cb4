"""Limits that a variant keeps which knows nothing: one that guesses, or holds every token equally likely."""

from __future__ import annotations

import math

from harness.forecast.linting.evidence import Evidence
from harness.forecast.needs import Need
from harness.forecast.trial import Boundary

NATS = ("divergence.kl_mean", "divergence.kl_p50", "divergence.kl_p99", "divergence.kl_p999", "divergence.kl_max")


def guess_passes(need: Need, evidence: Evidence) -> str:
    """Why somebody who guesses keeps the limit, in words; empty if it is not so or not known."""
    found = need.boundary
    if found is None or found.limit is None:
        return ""
    if need.metric.startswith("tasks."):
        return _in_a_task(need, found, found.limit, evidence)
    if evidence.vocabulary is None:
        return ""
    words, limit = evidence.vocabulary, found.limit
    uniform = f"a model that holds all {words} tokens equally likely"
    before = _reference(evidence, "perplexity.value") or 1.0
    if need.metric == "perplexity.ratio" and limit >= words / before:
        return f"{uniform} has at most {words / before:.4g} times the perplexity of the reference"
    if need.metric == "perplexity.nll_delta" and limit >= math.log(words / before):
        return f"{uniform} loses at most {math.log(words / before):.4g} nats a token"
    if need.metric in NATS and limit >= math.log(words):
        return f"{uniform} is at most {math.log(words):.4g} nats a token away"
    if need.metric == "divergence.top1_agreement" and limit <= 1 / words:
        return f"{uniform} agrees about once in {words} tokens"
    return ""


def _in_a_task(need: Need, found: Boundary, limit: float, evidence: Evidence) -> str:
    _, task, last = need.metric.split(".", 2)
    chance = evidence.chance.get(task)
    if chance is None or need.spread is None:
        return ""
    guess = f"guessing scores {chance:.3g}"
    reference = need.spread.reference
    if last in ("flips", "flips_to_wrong"):
        right = 1.0 if reference is None else _reference_of_task(evidence, task)
        changed = (1 - chance) * (1.0 if last == "flips" else right)
        return f"guessing changes about {changed:.3g} of the answers" if limit >= changed else ""
    if need.spread.family != "paired" or found.worse > 0:
        return ""
    if found.subject == "change" and reference is None:
        # Of a reference without errors: the most that guessing can lose.
        return f"{guess}, and the best reference 1" if 1 + limit <= chance else ""
    allowed = (0.75 if reference is None else reference) + limit
    return f"{guess}, and down to {allowed:.3g} passes" if allowed <= chance + 1e-9 else ""


def _reference(evidence: Evidence, name: str) -> float | None:
    if evidence.run is None:
        return None
    return next((m.reference for m in evidence.run.measurements if m.name == name), None)


def _reference_of_task(evidence: Evidence, task: str) -> float:
    found = [_reference(evidence, f"tasks.{task}.{metric}") for metric in ("accuracy", "exact_match")]
    return next((score for score in found if score is not None), 1.0)
