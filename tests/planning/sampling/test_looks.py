"""Looks at growing samples: which documents, which intervals, which rules wait, and what parts and Holm make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.judge import judge
from harness.measures.divergence import Divergence
from harness.measures.layer_error import LayerError
from harness.measures.memory import Memory
from harness.measures.outliers import Outliers
from harness.measures.perplexity import Perplexity
from harness.planning.sampling.looks import Look, names_by_document, select_waiting_rules
from harness.planning.sampling.slices import measure_slices, slice_patterns
from harness.planning.specs import GateSpec, RuleSpec, SuiteSpec
from harness.records import DocumentsSpec, Measurement, Skipped, Slice
from harness.rules import Rule
from harness.rules.at_most import AtMost
from harness.rules.not_worse import NotWorse
from harness.statistics import Betting, GroupSequential
from tests.helpers.results import by_name, ends, number


def gate(*rules: Rule, **more: Any) -> GateSpec:
    specs = tuple(RuleSpec(rule=rule, where=f"g:{at}") for at, rule in enumerate(rules))
    return GateSpec(name="g", source="g", rules=specs, **more)


def rule(**fields: Any) -> NotWorse:
    usual: dict[str, Any] = {"metric": "perplexity.ratio", "why": "w", "margin": 0.05}
    return NotWorse(**(usual | fields))


def suite() -> SuiteSpec:
    documents = DocumentsSpec(data="pocket-heldout", min=20, max=200)
    measures = (Perplexity(), LayerError(), Outliers(), Memory())
    return SuiteSpec(name="s", source="s", documents=documents, measures=measures)


TOKENS = {index: 30 + index % 5 for index in range(200)}
SIZES = (20, 32, 50, 80, 126, 200)


def test_a_look_draws_the_first_documents_in_their_order() -> None:
    look = Look(SIZES, 1, TOKENS)
    assert look.drawn == frozenset(range(32))
    table = pd.DataFrame({"document": [0, 31, 32, 5], "value": [1, 2, 3, 4]})
    assert look.rows(table)["value"].tolist() == [1, 2, 4]


def test_documents_without_a_token_to_score_are_not_counted() -> None:
    """Of 0 to 4, number 1 has nothing to score, and so is not among what can be drawn."""
    look = Look((2, 4), 0, {0: 9, 2: 9, 3: 9, 4: 9})
    assert look.drawn == {0, 2}


@pytest.mark.parametrize("number", [0, 2, 5])
def test_intervals_are_those_of_the_looks_so_far(number: int) -> None:
    assert Look(SIZES, number, TOKENS).intervals() == GroupSequential.at(SIZES[: number + 1], 200)
    betting = Look(SIZES, number, TOKENS, "betting").intervals()
    assert isinstance(betting, Betting)
    assert betting.largest == 34
    assert betting.confidence == GroupSequential.at(SIZES[: number + 1], 200).confidence


def test_a_part_spends_its_error_by_its_own_documents() -> None:
    part = range(0, 200, 4)
    at = Look(SIZES, 1, TOKENS).intervals(part)
    assert at == GroupSequential.at([5, 8], 50)
    late = range(25, 200)
    assert Look(SIZES, 0, TOKENS).intervals(late) is None
    assert Look(SIZES, 1, TOKENS).intervals(late) == GroupSequential.at([7], 175)


def test_a_part_that_was_drawn_whole_is_not_looked_at_again() -> None:
    early = range(20)
    first, later = (Look(SIZES, number, TOKENS).intervals(early) for number in (0, 5))
    assert first == later == GroupSequential.at([20], 20)


def test_only_tables_with_rows_by_document_are_watched() -> None:
    assert "perplexity.ratio" in Perplexity().metrics_by_document()
    assert "layers.worst" in LayerError().metrics_by_document()
    assert Outliers().metrics_by_document() == []
    assert Memory().metrics_by_document() == []


@pytest.mark.parametrize(
    ("fields", "waits"),
    [
        ({}, True),
        ({"metric": "perplexity.*"}, True),
        ({"on_inconclusive": "warn"}, True),
        ({"on_inconclusive": "extend"}, True),
        ({"level": "warn"}, False),
        ({"level": "warn", "on_inconclusive": "extend"}, True),
        ({"decide": "point"}, False),
        ({"metric": "outliers.channels"}, False),
        ({"metric": "tasks.*.accuracy"}, False),
    ],
)
def test_which_rules_wait_for_documents(fields: dict[str, Any], waits: bool) -> None:
    found = select_waiting_rules([gate(rule(**fields), sequential="betting")], names_by_document(suite()))
    assert [len(each.rules) for each in found] == ([1] if waits else [])
    assert all(each.sequential == "betting" for each in found)


def tables(damage: float, count: int = 200, seed: int = 3, rare: int = 150) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables ``documents`` and ``tokens``; one document is of a kind of its own."""
    generator = np.random.default_rng(seed)
    kinds = ["rare" if index == rare else "usual" for index in range(count)]
    documents = pd.DataFrame({"document": range(count), "kind": kinds, "tokens": list(TOKENS.values()), "language": ""})
    document = np.repeat(np.arange(count), list(TOKENS.values()))
    reference = generator.exponential(2.0, len(document)) + 1.0
    shift = damage + 0.02 * generator.normal(size=count)[document] + 0.1 * generator.normal(size=len(document))
    columns = {"document": document, "reference_nll": reference, "variant_nll": np.maximum(reference + shift, 0.0)}
    return documents, pd.DataFrame(columns | {"reference_top1_p": 0.5, "variant_top1_p": 0.5, "bytes": 1.0})


def test_a_measure_gives_the_intervals_it_is_told_to() -> None:
    _, tokens = tables(0.0)
    look = Look(SIZES, 2, TOKENS)
    told = by_name(Perplexity().measure_at(look.rows(tokens), look.intervals()))
    own = by_name(Perplexity().measure_at(look.rows(tokens), None))
    for name in ("perplexity.ratio", "perplexity.value", "perplexity.nll_delta", "perplexity.bits_per_byte"):
        wide, narrow = told[name], own[name]
        assert (wide.change, wide.confidence, wide.clusters) == (narrow.change, 0.95, SIZES[2])
        (low, high), (inner_low, inner_high) = ends(wide), ends(narrow)
        assert low < inner_low < inner_high < high
        assert "look 3 at 50 of at most 200 documents" in wide.method
        if wide.variant is not None:
            assert number(wide.variant_low) < number(narrow.variant_low)


class Foreign(Memory):
    """A measure that knows nothing of looks."""

    def measure(self, table: pd.DataFrame) -> list[Measurement | Skipped]:
        shared: dict[str, Any] = {"unit": "nats", "better": "lower", "change": 0.5, "n": 3, "clusters": 3}
        return [
            Measurement(name="foreign.mean", low=0.4, high=0.6, basis="sampled", method="exact match", **shared),
            Measurement(name="foreign.count", low=0.5, high=0.5, basis="counted", method="exact count", **shared),
            Skipped(measure="foreign.other", reason="r"),
        ]


def test_a_measure_that_knows_nothing_of_looks_loses_its_intervals() -> None:
    """An ordinary interval at a number of documents that the data chose must not reach a rule."""
    look = Look(SIZES, 0, TOKENS)
    mean, count, skipped = Foreign().measure_at(pd.DataFrame(), look.intervals())
    assert isinstance(mean, Measurement)
    assert (mean.change, mean.low, mean.high) == (0.5, None, None)
    assert "the suite stopped by sequential sampling" in mean.method
    (verdict,) = judge([gate(AtMost(metric="foreign.mean", limit=1.0, why="w"))], [mean], [], False)
    assert verdict.status == "inconclusive"
    assert isinstance(count, Measurement)
    assert (count.low, count.high) == (0.5, 0.5)
    assert isinstance(skipped, Skipped)


def slices_at(number: int, damage: float = 0.0) -> list[Any]:
    documents, tokens = tables(damage)
    look = Look(SIZES, number, TOKENS)
    wanted = slice_patterns([gate(rule(slices="kind"))])
    rows = look.rows(tokens)
    return measure_slices("s", documents, [Perplexity(), Divergence(), Memory()], lambda m: rows, wanted, look)


def test_a_part_of_which_nothing_was_drawn_is_an_error_and_not_forgotten() -> None:
    usual, rare = slices_at(0)
    assert (usual.value, usual.documents) == ("usual", 20)
    assert (rare.value, rare.documents, rare.measurements) == ("rare", 0, ())
    verdicts = judge([gate(rule(slices="kind"))], [], [], False, [usual, rare])
    assert [verdict.status for verdict in verdicts] == ["pass", "error"]
    assert "no document of this slice was measured" in verdicts[1].because


def test_a_part_of_one_document_stays_undecided_to_the_end() -> None:
    verdicts = judge([gate(rule(slices="kind"))], [], [], False, slices_at(len(SIZES) - 1))
    assert [verdict.status for verdict in verdicts] == ["pass", "inconclusive"]


def slices_by_length(look: Look, documents: pd.DataFrame, tokens: pd.DataFrame) -> list[Slice]:
    wanted, rows = slice_patterns([gate(rule(slices="length"))]), look.rows(tokens)
    return measure_slices("s", documents, [Perplexity()], lambda m: rows, wanted, look)


def test_parts_are_those_of_all_documents_at_every_look() -> None:
    documents, tokens = tables(0.0)
    named = []
    for at in (0, len(SIZES) - 1):
        look = Look(SIZES, at, TOKENS)
        found = slices_by_length(look, documents, tokens)
        named.append([part.value for part in found])
        assert sum(part.documents for part in found) == SIZES[at]
    assert named[0] == named[1]


def test_a_failure_must_hold_among_comparisons_that_are_made_elsewhere() -> None:
    """p = 0.02 alone; with one more comparison the failure is not significant (Holm)."""
    found = Measurement(
        name="perplexity.ratio", unit="ratio", better="lower", neutral=1.0, change=1.1, low=1.051, high=1.149, n=900,
        clusters=300, basis="sampled", method="m",
    )  # fmt: skip

    def status(elsewhere: int) -> str:
        (verdict,) = judge([gate(rule())], [found], [], False, (), elsewhere)
        return verdict.status

    assert [status(count) for count in (0, 1, 8)] == ["fail", "inconclusive", "inconclusive"]
    clear = found.model_copy(update={"change": 1.5, "low": 1.45, "high": 1.55})
    (verdict,) = judge([gate(rule())], [clear], [], False, (), 20)
    assert verdict.status == "fail"


def test_items_that_somebody_scored_already_do_not_change_a_look() -> None:
    """Of documents all clusters are known before anything is measured; of items those that were drawn."""
    now, later = {5: 3}, {5: 3, 150: 4}
    drawn = [Look(SIZES, 1, TOKENS, clusters=known, task="t").intervals() for known in (now, later)]
    assert drawn[0] == drawn[1] == GroupSequential.at([19, 31], 199, units="items")
    assert Look(SIZES, 1, TOKENS, clusters=later).intervals() == GroupSequential.at([19, 31], 198)


def test_the_rows_of_items_are_those_of_their_task() -> None:
    table = pd.DataFrame({"task": ["t", "t", "u"], "doc_id": [1, 90, 1]})
    look = Look(SIZES, 0, TOKENS, task="t")
    assert look.rows(table).index.tolist() == [0]
    assert look.units == "items"
