"""Rules that must hold on every part of the documents: by kind, by language, by length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.judge import judge
from harness.measures.memory import Memory
from harness.measures.perplexity import Perplexity
from harness.planning.sampling.slices import measure_slices, slice_patterns, split_documents
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Measurement, Skipped, Slice
from harness.records.conclusion import overall
from harness.rules import Rule
from harness.rules.not_worse import NotWorse
from tests.helpers.results import measurements, number

KINDS = ("facts", "sums")


def rule(slices: str | None = "kind", **fields: Any) -> NotWorse:
    usual: dict[str, Any] = {"metric": "perplexity.ratio", "why": "w", "margin": 0.05, "slices": slices}
    return NotWorse(**(usual | fields))


def gate(*rules: Rule) -> GateSpec:
    return GateSpec(name="g", source="g", rules=tuple(RuleSpec(rule=r, where=f"g:{i}") for i, r in enumerate(rules)))


def tables(damage: dict[str, float], each: int = 20, seed: int = 3) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables ``documents`` and ``tokens``: kinds take turns, and each is damaged by its own amount."""
    count, generator = each * len(damage), np.random.default_rng(seed)
    kinds = np.array([list(damage)[i % len(damage)] for i in range(count)])
    lengths = 5 + np.arange(count)
    documents = pd.DataFrame({"document": range(count), "kind": kinds, "tokens": lengths, "language": ""})
    document = np.repeat(np.arange(count), lengths)
    reference = generator.exponential(2.0, len(document)) + 1.0
    shift = np.array([damage[kind] for kind in kinds]) + 0.01 * generator.normal(size=count)
    columns = {"document": document, "reference_nll": reference, "variant_nll": reference + shift[document]}
    return documents, pd.DataFrame(columns | {"reference_top1_p": 0.5, "variant_top1_p": 0.5, "bytes": 1.0})


def measure_parts(documents: pd.DataFrame, tokens: pd.DataFrame, *rules: Rule) -> list[Slice]:
    read: Callable[..., pd.DataFrame | None] = lambda measure: tokens if measure.table == "tokens" else None  # noqa: E731
    return measure_slices("core", documents, [Perplexity(), Memory()], read, slice_patterns([gate(*rules)]))


def whole(tokens: pd.DataFrame) -> list[Measurement]:
    return [found for found in Perplexity().measure(tokens) if isinstance(found, Measurement)]


def test_a_slice_holds_what_the_measure_says_of_its_documents_alone() -> None:
    documents, tokens = tables({"facts": 0.0, "sums": 0.3})
    found = measure_parts(documents, tokens, rule())
    assert [(part.label, part.value, part.documents) for part in found] == [("kind", kind, 20) for kind in KINDS]
    for at, part in enumerate(found):
        alone = measurements(Perplexity().measure(tokens[tokens["document"] % 2 == at]))
        assert part.measurements == tuple(m for m in alone if m.name == "perplexity.ratio")


def test_damage_that_the_whole_hides_fails_on_its_slice() -> None:
    documents, tokens = tables({"facts": -0.04, "sums": 0.12, "tales": -0.04, "requests": -0.04})
    slices = measure_parts(documents, tokens, rule())
    verdicts = judge([gate(rule(None), rule())], whole(tokens), [], False, slices)
    assert [(v.labels.get("slice"), v.status) for v in verdicts] == [
        (None, "pass"), ("kind=facts", "pass"), ("kind=sums", "fail"), ("kind=tales", "pass"),
        ("kind=requests", "pass"),
    ]  # fmt: skip
    assert overall(verdicts) == ("fail", 1)


def test_a_pattern_chooses_slices_and_must_find_one() -> None:
    documents, tokens = tables({"facts": 0.0, "sums": 0.3})
    slices = measure_parts(documents, tokens, rule("kind=fac*"))
    (verdict,) = judge([gate(rule("kind=fac*"))], whole(tokens), [], False, slices)
    assert (verdict.labels, verdict.status) == ({"slice": "kind=facts"}, "pass")
    (verdict,) = judge([gate(rule("kind=summs"))], whole(tokens), [], False, slices)
    assert verdict.status == "error"
    assert "not measured on any slice kind=summs; slices measured by kind: facts, sums" in verdict.because


@pytest.mark.parametrize(
    ("asked", "because"),
    [
        (rule("language"), "measured by language: none at all"),
        (rule(metric="memory.weight_bytes"), "no measured metric is called memory.weight_bytes"),
        (rule(metric="perplexity.ration"), "did you mean perplexity.ratio?"),
    ],
)
def test_what_cannot_be_sliced_is_an_error(asked: Rule, because: str) -> None:
    documents, tokens = tables({"facts": 0.0, "sums": 0.0})
    slices = measure_parts(documents, tokens, asked, rule())
    verdicts = judge([gate(asked)], whole(tokens), [], False, slices)
    assert {v.status for v in verdicts} == {"error"}
    assert all(because in v.because for v in verdicts)


def test_without_any_slice_the_whole_does_not_stand_in() -> None:
    _, tokens = tables({"facts": 0.0, "sums": 0.0})
    assert overall(judge([gate(rule())], whole(tokens), [], True)) == ("error", 2)


def test_a_slice_with_too_few_documents_decides_nothing() -> None:
    documents, tokens = tables({"facts": 0.0, "sums": 0.0}, each=12)
    keep = documents[(documents["kind"] == "facts") | (documents["document"] < 6)]
    slices = measure_parts(keep, tokens, rule())
    verdicts = judge([gate(rule(min_documents=10))], whole(tokens), [], False, slices)
    assert [v.status for v in verdicts] == ["pass", "inconclusive"]
    one = measure_parts(documents[documents["document"] != 99].iloc[:1], tokens, rule())
    assert [v.status for v in judge([gate(rule())], [], [], False, one)] == ["inconclusive"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_number_fails_its_slice(bad: float) -> None:
    documents, tokens = tables({"facts": 0.0, "sums": 0.0})
    tokens.loc[tokens["document"] == 1, "variant_nll"] = bad
    verdicts = judge([gate(rule())], [], [], False, measure_parts(documents, tokens, rule()))
    assert [v.status for v in verdicts] == ["pass", "fail"]


def test_a_measure_that_raises_on_a_slice_is_an_error() -> None:
    documents, tokens = tables({"facts": 0.0, "sums": 0.0})
    tokens.loc[tokens["document"] == 1, "variant_nll"] = -7.0
    parts_ = measure_parts(documents, tokens, rule())
    assert [type(entry) for entry in parts_[1].skipped] == [Skipped]
    assert [v.status for v in judge([gate(rule())], [], [], False, parts_)] == ["pass", "error"]


@pytest.mark.parametrize("level", ["block", "warn"])
def test_naming_a_slice_takes_more_than_chance_among_many(level: str) -> None:
    """Twenty slices, all truly at the margin: without correction two in five gates would blame somebody."""
    generator = np.random.default_rng(8)
    named = alone = 0
    for _ in range(200):
        slices = []
        for at, z in enumerate(generator.standard_t(49, size=20)):
            found = Measurement(
                name="perplexity.ratio", unit="ratio", better="lower", neutral=1.0, change=1.05 + 0.001 * z,
                low=1.05 + 0.001 * (z - 2.0096), high=1.05 + 0.001 * (z + 2.0096), n=500, clusters=50,
                basis="sampled", method="m",
            )  # fmt: skip
            slices.append(Slice(suite="s", label="kind", value=str(at), documents=50, measurements=(found,)))
            alone += number(found.low) > 1.05
        statuses = [v.status for v in judge([gate(rule(level=level))], [], [], False, slices)]
        named += "fail" in statuses
    assert alone / 200 > 0.3
    assert named / 200 <= 0.05


def test_length_makes_thirds_without_tearing_equal_lengths_apart() -> None:
    documents, _ = tables({"facts": 0.0, "sums": 0.0}, each=15)
    thirds = split_documents(documents, "length")
    assert [part.value for part in thirds] == ["5 to 15 tokens", "16 to 25 tokens", "26 to 34 tokens"]
    assert sum(len(part.documents) for part in thirds) == 30
    same = documents.assign(tokens=np.where(documents["document"] < 20, 9, 40))
    two = [(part.value, len(part.documents)) for part in split_documents(same, "length")]
    assert two == [("9 tokens", 20), ("40 tokens", 10)]
    nothing = documents.assign(tokens=0)
    assert split_documents(nothing, "length") == split_documents(nothing, "kind") == []


def test_the_order_of_documents_changes_no_slice() -> None:
    documents, tokens = tables({"facts": 0.0, "sums": 0.1})
    first = measure_parts(documents, tokens, rule(), rule("length"))
    other = documents.sample(frac=1, random_state=1), tokens.sample(frac=1, random_state=2)
    shuffled = measure_parts(*other, rule(), rule("length"))
    assert sorted(first, key=repr) == sorted(shuffled, key=repr)


def test_documents_without_a_label_are_a_part_of_their_own() -> None:
    documents, _ = tables({"facts": 0.0, "sums": 0.0}, each=3)
    documents.loc[[0, 1], "kind"] = ""
    assert [(part.value, len(part.documents)) for part in split_documents(documents, "kind")] == [
        ("unlabelled", 2), ("facts", 2), ("sums", 2),
    ]  # fmt: skip
