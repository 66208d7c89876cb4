"""Copies of a text count as one, in every measure, on slices and at looks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from harness.judge import judge
from harness.measures import Measure
from harness.measures.calibration import Calibration
from harness.measures.divergence import Divergence
from harness.measures.layer_error import LayerError
from harness.measures.logits import Logits
from harness.measures.perplexity import Perplexity
from harness.planning.sampling.clusters import label_clusters, name_documents
from harness.planning.sampling.looks import Look
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Measurement
from harness.rules.not_worse import NotWorse
from harness.statistics import Betting, GroupSequential, drop_repeated_looks
from tests.helpers.made_tables import make_tables
from tests.helpers.results import measurements
from tests.helpers.unnamed import without_names

TIMES = 10


def twice(frame: pd.DataFrame, documents: int, times: int = TIMES) -> pd.DataFrame:
    """Every document so many times, one copy of all after the other."""
    copies = [frame.assign(document=frame["document"] + copy * documents) for copy in range(times)]
    return pd.concat(copies, ignore_index=True)


def copied_documents(documents: int, times: int = TIMES) -> pd.DataFrame:
    index = np.arange(documents * times)
    return pd.DataFrame({"document": index, "cluster": index % documents, "id": [f"text-{at}" for at in index]})


@pytest.mark.parametrize("measure", [Perplexity(), Divergence(), Calibration(), Logits(), LayerError()])
def test_copies_give_the_intervals_of_the_texts_once(measure: Measure) -> None:
    tables = make_tables(np.random.default_rng(1), 0.1, documents=25, length=20, layers=1, items=5)
    single = tables[measure.table]
    labelled = label_clusters(twice(single, 25), copied_documents(25))
    for once, again in zip(measurements(measure.measure(single)), measurements(measure.measure(labelled)), strict=True):
        assert again.clusters == once.clusters == 25
        if once.low is not None and "Woodruff" not in once.method and "Korn" not in once.method:
            assert again.change == pytest.approx(once.change)
            assert (again.low, again.high) == pytest.approx((once.low, once.high), rel=1e-3, abs=1e-9)


def test_two_texts_ten_times_each_are_two_documents_for_a_rule() -> None:
    table = make_tables(np.random.default_rng(1), 0.01, documents=2, length=20, layers=1, items=5)["tokens"]
    rule = NotWorse(metric="perplexity.ratio", margin=0.5, why="w", min_documents=20)
    for rows, documents, status in (
        (twice(table, 2), None, "pass"),
        (twice(table, 2), copied_documents(2), "inconclusive"),
    ):
        found = Perplexity().measure(label_clusters(rows, documents))
        (ratio,) = (m for m in found if isinstance(m, Measurement) and m.name == "perplexity.ratio")
        gate = GateSpec(name="g", source="g", rules=(RuleSpec(rule=rule, where="g:1"),))
        (verdict,) = judge([gate], [ratio], [], identical=False)
        assert verdict.status == status
    assert "n = 2 documents, expected at least 20" in verdict.because


def test_without_copies_nothing_is_touched() -> None:
    table = pd.DataFrame({"document": [0, 0, 1], "x": 1.0})
    documents = pd.DataFrame({"document": [0, 1], "cluster": [0, 1]})
    assert label_clusters(table, documents) is table
    assert label_clusters(table, None) is table
    assert label_clusters(table, documents[["document"]]) is table, "tables of earlier versions have no clusters"
    older = documents.assign(cluster=[0.0, np.nan])
    assert label_clusters(table, older) is table


def test_labels_keep_rows_order_and_type() -> None:
    table = pd.DataFrame({"document": np.array([5, 0, 7, 5], dtype=np.int32), "x": range(4)})
    documents = pd.DataFrame({"document": [0, 5, 7], "cluster": [0, 0, 7]})
    found = label_clusters(table, documents)
    assert found["document"].tolist() == [0, 0, 7, 0]
    assert found["document"].dtype == np.int32
    assert found["x"].tolist() == [0, 1, 2, 3]


def test_the_worst_document_is_called_by_its_id() -> None:
    tables = make_tables(np.random.default_rng(1), 0.1, documents=25, length=20, layers=1, items=5)
    found = Perplexity().measure(tables["tokens"])
    named = name_documents(found, tables["documents"])
    (index,) = (m.labels["worst_document"] for m in measurements(found) if m.name == "perplexity.broken_documents")
    (name,) = (m.labels["worst_document"] for m in measurements(named) if m.name == "perplexity.broken_documents")
    assert name == tables["documents"]["id"][int(index)] != index
    assert without_names(named) == without_names(found)
    assert name_documents(found, None) == list(found)


TOKENS = dict.fromkeys(range(100), 7)
COPIES = {document: document - 50 for document in range(50, 100)}
"""The second half of the documents repeats the first."""


def test_looks_that_see_copies_alone_are_dropped_but_the_last() -> None:
    sizes = (20, 40, 60, 80, 100)
    assert drop_repeated_looks(sizes, list(TOKENS)) == sizes
    assert drop_repeated_looks(sizes, [COPIES.get(each, each) for each in TOKENS]) == (20, 40, 100)
    assert drop_repeated_looks((20, 100), [0] * 100) == (100,)


def test_the_share_that_a_look_saw_is_that_of_texts() -> None:
    look = Look((20, 40, 100), 1, TOKENS, clusters=COPIES)
    assert look.intervals() == GroupSequential.at([20, 40], 50)
    assert Look((20, 60, 100), 1, TOKENS, clusters=COPIES).intervals(range(5, 60)) == GroupSequential.at([15, 50], 50)
    betting = Look((20, 40, 100), 1, TOKENS, "betting", COPIES).intervals()
    assert isinstance(betting, Betting)
    assert betting.largest == 14, "both copies of a text together"
