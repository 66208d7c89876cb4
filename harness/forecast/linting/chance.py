"""Finds limits that even a trivial model passes: one that guesses, or predicts a uniform distribution."""

from __future__ import annotations

import math

from harness.forecast.boundary import Boundary
from harness.forecast.linting.evidence import Evidence
from harness.forecast.needs import Need


def guess_passes(need: Need, evidence: Evidence) -> str:
    """Why a trivial model passes the rule, in words; empty if it does not, or if that is not known."""
    found, level = need.boundary, need.measured.metric.chance
    if found is None or found.limit is None or not level:
        return ""
    if level in ("guess", "guess_flips", "guess_losses"):
        return _compare_with_guessing(need, found, found.limit, evidence)
    if evidence.vocabulary is None:
        return ""
    v, limit = evidence.vocabulary, found.limit
    before = _reference(evidence, "perplexity.value") or 1.0
    passes, how = {
        "v_over_perplexity": (limit >= v / before, f"has at most {v / before:.4g} times the reference's perplexity"),
        "ln_v_over_perplexity": (limit >= math.log(v / before), f"loses at most {math.log(v / before):.4g} nats/token"),
        "ln_v": (limit >= math.log(v), f"is at most {math.log(v):.4g} nats/token away"),
        "one_in_v": (limit <= 1 / v, f"agrees on about one in {v} tokens"),
    }[level]
    return f"a uniform distribution over all {v} tokens {how}" if passes else ""


def _compare_with_guessing(need: Need, found: Boundary, limit: float, evidence: Evidence) -> str:
    task, level = need.metric.split(".")[1], need.measured.metric.chance
    chance = evidence.chance.get(task)
    if chance is None or need.spread is None:
        return ""
    guess = f"guessing scores {chance:.3g}"
    reference = need.spread.reference
    if level != "guess":
        right = 1.0 if reference is None else _reference_of_task(evidence, task)
        changed = (1 - chance) * (1.0 if level == "guess_flips" else right)
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
    scores = [_reference(evidence, f"tasks.{task}.{metric}") for metric in ("accuracy", "exact_match")]
    return next((score for score in scores if score is not None), 1.0)
