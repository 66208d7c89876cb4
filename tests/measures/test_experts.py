"""The measure ``experts`` on tables made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pytest

from harness.measures.experts import Experts
from harness.records import Measurement, Skipped
from harness.rules.at_most import AtMost
from tests.helpers.results import measurement, skipped, with_skipped

FITTED = (4, 0, 6, 0)


def table(
    variant: Sequence[int] = (5, 3, 0, 2),
    agreeing: Sequence[int] = (5, 2, 0, 1),
    calibration: Sequence[int] = FITTED,
    reference: Sequence[int] = (4, 4, 1, 1),
) -> pd.DataFrame:
    modules = ("a", "a", "b", "b")
    rows = [("reference", m, e % 2, reference[e], -1, -1) for e, m in enumerate(modules)]
    rows += [("variant", m, e % 2, variant[e], agreeing[e], calibration[e]) for e, m in enumerate(modules)]
    return pd.DataFrame(rows, columns=["side", "module", "expert", "tokens", "agreeing", "calibration"])


def found(frame: pd.DataFrame) -> dict[str, Measurement | Skipped]:
    return with_skipped(Experts().measure(frame))


def test_experts_without_calibration_are_counted_and_named() -> None:
    unreached = measurement(found(table())["experts.unreached"])
    assert (unreached.change, unreached.low, unreached.high) == (2.0, 2.0, 2.0)
    assert unreached.labels == {"experts": "a: 1; b: 1"}
    share = measurement(found(table())["experts.uncalibrated_share"])
    assert share.change == pytest.approx(5 / 10)
    rule = AtMost(metric="experts.unreached", limit=0.0, why="every expert was calibrated")
    assert rule.judge(unreached, identical=False).status == "fail"
    reached = measurement(found(table(calibration=(1, 1, 1, 1)))["experts.unreached"])
    assert rule.judge(reached, identical=False).status == "pass"
    assert measurement(found(table(calibration=(1, 1, 1, 1)))["experts.uncalibrated_share"]).change == 0.0


def test_unused_experts_are_compared() -> None:
    unused = measurement(found(table())["experts.unused"])
    assert (unused.reference, unused.variant, unused.change) == (0.0, 1.0, 1.0)
    assert unused.labels == {"experts": "b: 0"}


def test_agreement_is_a_share_of_routings() -> None:
    entries = found(table())
    assert measurement(entries["experts.agreement"]).change == pytest.approx(8 / 10)
    worst = measurement(entries["experts.agreement_worst"])
    assert worst.change == pytest.approx(1 / 2)
    assert worst.labels == {"module": "b"}
    same = found(table(agreeing=(5, 3, 0, 2)))
    assert [measurement(same[f"experts.{name}"]).low for name in ("agreement", "agreement_worst")] == [1.0, 1.0]


def test_without_calibration_nothing_is_said_about_it() -> None:
    entries = found(table(calibration=(-1, -1, -1, -1)))
    for name in ("unreached", "uncalibrated_share"):
        assert "no step of the variant uses calibration documents" in skipped(entries[f"experts.{name}"]).reason
    assert isinstance(entries["experts.agreement"], Measurement)


def test_what_could_not_be_counted_is_skipped_by_name() -> None:
    entries = found(table(variant=(-1, -1, 0, 2)))
    assert "experts of a of the variant" in skipped(entries["experts.unused"]).reason
    assert "experts of a of the variant" in skipped(entries["experts.agreement"]).reason
    assert isinstance(entries["experts.unreached"], Measurement)
    assert "separate modules" in skipped(found(table(agreeing=(-1, -1, -1, -1)))["experts.agreement"]).reason


def test_dense_models_are_skipped() -> None:
    frame = pd.DataFrame([("none", "", -1, 0, -1, -1)], columns=list(table().columns))
    reasons = {skipped(entry).reason for entry in found(frame).values()}
    assert reasons == {"the models are dense: no mixture of experts was found"}
    half = table()
    reasons = {skipped(entry).reason for entry in found(half[half["side"] == "reference"]).values()}
    assert reasons == {"the variant is dense: no mixture of experts was found"}


def test_an_expert_that_is_listed_twice_is_refused() -> None:
    twice = pd.concat([table(), table()], ignore_index=True)
    assert {skipped(entry).reason for entry in found(twice).values()} == {"the table names experts twice"}
