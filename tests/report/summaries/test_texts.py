"""Bits per byte by kind: sums over documents, the one that suffered most first."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from harness.measures._common.text_bits import TextBits
from harness.report.summaries import texts
from harness.report.summaries.suite_tables import SuiteTables
from tests.helpers.made_tables import MadeTables
from tests.measures.test_text_bits import table


def suite(frame: pd.DataFrame, kinds: list[str]) -> SuiteTables:
    documents = pd.DataFrame({"document": range(len(kinds)), "kind": kinds})
    return SuiteTables("core", MadeTables({"texts": frame, "documents": documents}))


def test_each_kind_is_what_the_measure_says_of_it() -> None:
    frame, kinds = table(documents=40), ["a", "b"] * 20
    found = texts.group_by_kind(suite(frame, kinds), 9)
    assert [kind.change for kind in found] == sorted((kind.change for kind in found), reverse=True)
    for kind in found:
        own = frame[frame["document"].isin(np.flatnonzero(np.array(kinds) == kind.name))]
        (wanted,) = TextBits().measure(own)
        assert kind.documents == 20
        for name in ("reference", "variant", "change", "low", "high"):
            assert getattr(kind, name) == pytest.approx(getattr(wanted, name)), name


def test_what_was_not_scored_is_not_shown() -> None:
    frame = table(documents=4, windows=1)
    frame.loc[0, "skipped"] = "no part of it"
    frame.loc[1, "variant_nll"] = math.nan
    (kind,) = texts.group_by_kind(suite(frame, ["a"] * 4), 9)
    assert kind.documents == 2
    assert texts.group_by_kind(suite(frame.iloc[:1], ["a"]), 9) == []
    assert texts.group_by_kind(SuiteTables("core", MadeTables({})), 9) == []
    (alone,) = texts.group_by_kind(suite(frame.iloc[2:3].assign(document=0), ["a"]), 9)
    assert (alone.low, alone.high) == (None, None)
