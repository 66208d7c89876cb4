"""Made-up rules and what they say about made-up measurements."""

from __future__ import annotations

from typing import Any

from harness.records import Measurement, Status, Verdict
from tests.helpers.results import number

RULES: tuple[dict[str, Any], ...] = (
    {
        "rule": "not_worse",
        "metric": "perplexity.ratio",
        "margin": 0.02,
        "why": "a reader notices about two percent",
    },
    {"rule": "at_most", "metric": "divergence.kl_mean", "limit": 0.02, "why": "as q5_K_M on an 8B model"},
    {
        "rule": "not_worse",
        "metric": "tasks.pocket_recall_far.exact_match",
        "margin": 0.08,
        "why": "long context breaks first and shows last",
    },
    {"rule": "not_worse", "metric": "tasks.pocket_facts.accuracy", "margin": 0.05, "why": "facts must stay"},
    {
        "rule": "at_most",
        "metric": "memory.bits_per_weight",
        "limit": 12.0,
        "why": "else it does not fit the device",
    },
    {
        "rule": "at_least",
        "metric": "divergence.top1_agreement",
        "limit": 0.9,
        "level": "warn",
        "why": "below, generations drift apart within a sentence",
    },
)


def make_asked() -> dict[str, Any]:
    rules = [
        {
            "rule": {key: value for key, value in rule.items() if key != "rule"},
            "where": f"gates/ship.yaml:{line}",
        }
        for line, rule in enumerate(RULES, start=3)
    ]
    return {
        "name": "pocket-w4-g32",
        "source": "variant.yaml",
        "reference": {"model": "pocket", "dtype": "float32"},
        "variant": {
            "model": "reference",
            "compress": [{"backend": "round_to_nearest", "bits": 4, "group_size": 32}],
        },
        "suites": [
            {
                "name": "core",
                "source": "suites/core.yaml",
                "documents": {"data": "pocket-heldout", "max": 200},
            }
        ],
        "gates": [{"name": "ship", "source": "gates/ship.yaml", "rules": rules}],
    }


def make_verdicts(measurements: list[Measurement]) -> list[Verdict]:
    by_name = {m.name: m for m in measurements}
    return [
        judge_like(rule, by_name.get(rule["metric"]), f"gates/ship.yaml:{line}")
        for line, rule in enumerate(RULES, start=3)
    ]


def judge_like(rule: dict[str, Any], m: Measurement | None, where: str) -> Verdict:
    common = {
        "gate": "ship",
        "rule": rule["rule"],
        "metric": rule["metric"],
        "where": where,
        "why": rule["why"],
        "level": rule.get("level", "block"),
    }
    if m is None:
        reason = f"{rule['metric']}: the documents have other token ids under the variant's tokenizer"
        return Verdict(
            status="error", expected="a measurement", found="none", because=reason, failure="quality", **common
        )
    limit, upper = limit_of(rule, m)
    bits = m.name == "memory.bits_per_weight"
    value, low, high = map(number, (m.variant,) * 3 if bits else (m.change, m.low, m.high))
    good, bad = (high, low) if upper else (low, high)
    sign = 1 if upper else -1
    status: Status = "pass" if sign * (limit - good) > 0 else "fail" if sign * (limit - bad) < 0 else "inconclusive"
    bound = bad if status == "fail" else good
    because = {
        "pass": "the whole 95 % interval is on the good side of the limit",
        "fail": "the whole 95 % interval is beyond the limit",
        "inconclusive": "the limit lies inside the 95 % interval; more documents would narrow it",
    }[status]
    return Verdict(
        status=status,
        expected=f"{'at most' if upper else 'at least'} {limit!r}",
        found=f"{value!r} [{low!r}, {high!r}]",
        margin=sign * (limit - bound),
        because=because,
        failure=None if status == "pass" else "quality",
        **common,
    )


def limit_of(rule: dict[str, Any], m: Measurement) -> tuple[float, bool]:
    """The limit and whether values must stay below it."""
    if rule["rule"] == "not_worse":
        return m.neutral + (1 if m.better == "lower" else -1) * rule["margin"], m.better == "lower"
    return rule["limit"], rule["rule"] == "at_most"
