"""Bits per byte over texts: the numbers of the token table, its interval by document, and what is not judged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from harness.errors import MeasureError
from harness.measures._common.text_bits import TextBits
from harness.measures.perplexity import Perplexity
from harness.records import Measurement, Skipped
from tests.helpers.results import skipped
from tests.helpers.symmetric_intervals import skewed_ends


def table(documents: int = 40, windows: int = 2, seed: int = 0, **columns: Any) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    count = documents * windows
    size = generator.integers(50, 400, count)
    own = generator.normal(0.6, 0.1, documents).repeat(windows)
    rows: dict[str, Any] = {
        "document": np.arange(documents).repeat(windows),
        "total_bytes": size,
        "bytes": size,
        "reference_tokens": size // 4,
        "variant_tokens": size // 3,
        "reference_nll": own * size,
        "variant_nll": (own + generator.normal(0.03, 0.02, documents).repeat(windows)) * size,
        "lossy": False,
        "skipped": "",
    }
    return pd.DataFrame(rows | columns)


def bits(frame: pd.DataFrame) -> Any:
    (found,) = TextBits().measure(frame)
    return found


def test_it_is_the_ratio_of_sums_with_an_interval_by_document() -> None:
    frame = table(documents=120)
    found = bits(frame)
    size = frame["bytes"].to_numpy(dtype=float)
    delta = (frame["variant_nll"] - frame["reference_nll"]) / math.log(2)
    assert found.name == "perplexity.bits_per_byte"
    assert found.reference == pytest.approx(frame["reference_nll"].sum() / math.log(2) / size.sum())
    assert found.variant == pytest.approx(frame["variant_nll"].sum() / math.log(2) / size.sum())
    assert found.change == pytest.approx(found.variant - found.reference)
    fit = sm.WLS(delta / size, np.ones(len(frame)), weights=size)
    residuals = ((delta / size - found.change) * size).groupby(frame["document"]).sum().to_numpy()
    by_document, alone = (
        float(fit.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True).bse.iloc[0])
        for groups in (frame["document"], np.arange(len(frame)))
    )
    assert (found.low, found.high) == pytest.approx(skewed_ends(found.change, by_document, residuals), rel=1e-5)
    assert (found.low, found.high) != pytest.approx(skewed_ends(found.change, alone, residuals), rel=1e-2)
    assert (found.n, found.clusters) == (240, 120)


def test_pairing_beats_the_difference_of_two_intervals() -> None:
    found = bits(table())
    assert found.high - found.low < (found.variant_high - found.variant_low) / 2


def test_it_is_what_perplexity_gives_instead_and_under_the_same_name() -> None:
    instead = Perplexity().get_substitute()
    assert isinstance(instead, TextBits)
    assert {metric.name for metric in instead.produces()} <= {metric.name for metric in Perplexity().produces()}
    assert instead.kind == "perplexity"


def test_equal_sides_change_nothing() -> None:
    frame = table()
    found = bits(frame.assign(variant_nll=frame["reference_nll"]))
    assert found.change == 0.0


def test_what_is_left_out_is_said() -> None:
    frame = table(windows=1)
    whole = bits(frame).method
    assert "left out" not in whole
    frame["total_bytes"] += np.where(frame.index == 0, 90, 0)
    said = bits(frame).method
    assert "90 bytes" in said
    frame.loc[1, "skipped"], frame.loc[1, "bytes"] = "no part of it ends a token", 0
    assert "1 documents are excluded completely" in bits(frame).method
    assert bits(frame).clusters == 39


@pytest.mark.parametrize(("lost", "kept"), [(1, True), (2, False)])
def test_texts_that_do_not_come_back_are_no_evidence(lost: int, kept: bool) -> None:
    frame = table(documents=100, windows=1)
    frame.loc[: lost - 1, "lossy"] = True
    frame.loc[: lost - 1, "skipped"] = "the variant's tokenizer does not give the text back"
    frame.loc[: lost - 1, ["bytes", "reference_nll", "variant_nll"]] = 0
    found = bits(frame)
    assert isinstance(found, Measurement) == kept
    if not kept:
        assert "the variant's tokenizer does not give the text back in 2 of 100 documents" in skipped(found).reason


def test_nothing_scored_is_skipped_with_the_reason() -> None:
    found = bits(table(skipped="no part of it ends a token on both sides"))
    assert isinstance(found, Skipped)
    assert "no part of it" in found.reason


@pytest.mark.parametrize("side", ["reference", "variant"])
def test_nan_is_put_on_its_side(side: str) -> None:
    frame = table()
    frame.loc[3, f"{side}_nll"] = math.nan
    assert bits(frame).non_finite == side


def test_one_document_gives_no_interval() -> None:
    found = bits(table(documents=1))
    assert found.low is None


def test_likelihoods_above_one_are_an_error() -> None:
    frame = table()
    frame.loc[0, "variant_nll"] = -5.0
    with pytest.raises(MeasureError, match="at least 0 nats"):
        TextBits().measure(frame)
