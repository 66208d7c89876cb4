"""Every part of a decision, compared exactly: status, margin, p-value and words, on either side of every tie."""

from __future__ import annotations

from typing import Any

import pytest
from scipy import stats

from harness.records import Measurement
from harness.rules import Bound, Decision
from harness.rules._compare import compare


def measured(value: float, low: float | None, high: float | None, **fields: Any) -> Measurement:
    given: dict[str, Any] = {
        "unit": "nats",
        "better": "neither",
        "n": 90,
        "clusters": 9,
        "basis": "sampled",
        "method": "mean",
    }
    return Measurement(name="m", change=value, low=low, high=high, **(given | fields))


UPPER, LOWER = Bound("below 2", upper=2.0), Bound("above 2", lower=2.0)
T = stats.t(8)


def beyond(distance: float, half: float) -> float:
    """The p-value of an estimate ``distance`` beyond the limit, the end that faces the limit ``half`` away from it."""
    return float(T.sf(distance / half * T.ppf(0.975)))


@pytest.mark.parametrize(
    ("low", "high", "status", "margin", "reason"),
    [
        (0.5, 1.75, "pass", 0.25, "the whole interval is within the limit"),
        (0.5, 2.0, "inconclusive", 0.0, "one end of the interval equals the limit, and a tie does not pass"),
        (0.5, 2.5, "inconclusive", -0.5, "the interval crosses the limit"),
        (2.0, 2.5, "inconclusive", -0.5, "one end of the interval equals the limit, and a tie does not pass"),
        (2.25, 4.0, "fail", -0.25, "the whole interval is beyond the limit"),
    ],
)
def test_an_interval_and_an_upper_limit(low: float, high: float, status: str, margin: float, reason: str) -> None:
    """A lower limit is the mirror image of an upper one, in every field."""
    value = (low + 3 * high) / 4
    found = f"{value:g} nats, 95 % interval [{low:g}, {high:g}]"
    wanted = Decision(
        status, "below 2", found, margin, f"m is {found}; expected: below 2; {reason}", None, reason=reason  # type: ignore[arg-type]
    )  # fmt: skip
    decision = compare(measured(value, low, high), UPPER, "interval", False)
    p_value = beyond(value - 2, value - low)
    assert decision == wanted.__class__(**(vars(wanted) | {"p_value": decision.p_value}))
    assert decision.p_value == pytest.approx(p_value, rel=1e-9)

    mirror = compare(measured(-value, -high, -low), Bound("above −2", lower=-2.0), "interval", False)
    assert (mirror.status, mirror.margin, mirror.reason) == (status, margin, reason)
    assert mirror.p_value == pytest.approx(p_value, rel=1e-9)


@pytest.mark.parametrize(
    ("value", "upper", "lower"),
    [(1.5, ("pass", 0.5), ("fail", -0.5)), (2.0, ("inconclusive", 0.0), ("inconclusive", 0.0)),
     (2.5, ("fail", -0.5), ("pass", 0.5))],
)  # fmt: skip
def test_a_point_and_a_limit(value: float, upper: tuple[str, float], lower: tuple[str, float]) -> None:
    for bound, wanted in ((UPPER, upper), (LOWER, lower)):
        decision = compare(measured(value, 0.0, 9.0), bound, "point", False)
        assert (decision.status, decision.margin, decision.p_value) == (*wanted, None)
        tie = "; it equals the limit, and a tie does not pass" if value == 2 else ""
        assert decision.reason == f"only the point estimate was compared (decide: point), n = 9 documents{tie}"


def test_a_point_of_no_documents_names_none() -> None:
    decision = compare(measured(1.0, None, None, clusters=0), UPPER, "point", False)
    assert decision.reason == "only the point estimate was compared (decide: point)"
    assert decision.found == "1 nats"


@pytest.mark.parametrize(
    ("value", "upper", "lower"),
    [(1.5, ("pass", 0.5), ("fail", -0.5)), (2.0, ("pass", 0.0), ("pass", 0.0)), (2.5, ("fail", -0.5), ("pass", 0.5))],
)
@pytest.mark.parametrize("basis", ["interval", "point"])
def test_a_counted_number_may_equal_a_limit(
    value: float, upper: tuple[str, float], lower: tuple[str, float], basis: Any
) -> None:
    for bound, wanted in ((UPPER, upper), (LOWER, lower)):
        decision = compare(measured(value, value, value, basis="counted"), bound, basis, False)
        assert (decision.status, decision.margin, decision.p_value) == (*wanted, None)
        assert (decision.reason, decision.found) == ("counted, not sampled", f"{value:g} nats")


@pytest.mark.parametrize(("low", "high"), [(None, None), (None, 1.5), (0.5, None)])
def test_an_interval_without_one_of_its_ends_decides_nothing(low: float | None, high: float | None) -> None:
    half_open = measured(1.0, None, None).model_copy(update={"low": low, "high": high})
    decision = compare(half_open, UPPER, "interval", False)
    assert (decision.status, decision.margin, decision.p_value, decision.found) == (
        "inconclusive",
        None,
        None,
        "1 nats",
    )
    assert decision.reason == "no interval is available (mean); to compare the point estimate, write decide: point"


def test_an_interval_without_width_decides_nothing() -> None:
    decision = compare(measured(1.0, 1.0, 1.0), UPPER, "interval", False)
    assert (decision.status, decision.margin, decision.p_value) == ("inconclusive", None, None)
    assert decision.reason == "an interval of width zero is no evidence about other documents (mean)"


@pytest.mark.parametrize(("clusters", "status"), [(0, "inconclusive"), (1, "inconclusive"), (2, "pass"), (3, "pass")])
def test_one_document_is_no_sample_that_could_pass(clusters: int, status: str) -> None:
    decision = compare(measured(1.0, 0.5, 1.5, clusters=clusters), UPPER, "interval", False)
    assert (decision.status, decision.margin) == (status, 0.5)
    assert (decision.p_value is None) == (status == "inconclusive")
    assert compare(measured(3.0, 2.5, 3.5, clusters=clusters), UPPER, "interval", False).status == "fail"


@pytest.mark.parametrize("high", [2.0, 2.5])
def test_of_one_document_only_a_pass_is_taken_back(high: float) -> None:
    decision = compare(measured(1.0, 0.5, high, clusters=1), UPPER, "interval", False)
    assert decision.status == "inconclusive"
    assert decision.p_value is not None
    assert "no sample" not in decision.reason


def test_two_limits_are_named_and_the_p_value_is_that_of_beyond_either() -> None:
    between = Bound("between", lower=0.0, upper=2.0)
    decision = compare(measured(1.5, 1.25, 1.75), between, "interval", False)
    assert (decision.status, decision.margin) == ("pass", 0.25)
    assert decision.reason == "the whole interval is within the upper limit 2"
    p_low, p_high = beyond(-1.5, 0.25), beyond(-0.5, 0.25)
    assert decision.p_value == pytest.approx(1 - abs(p_low - p_high), rel=1e-12)
    decision = compare(measured(0.5, 0.25, 0.75), between, "interval", False)
    assert decision.reason == "the whole interval is within the lower limit 0"
    failed = compare(measured(-1.0, -1.5, -0.5), between, "interval", False)
    assert (failed.status, failed.margin) == ("fail", -0.5)
    assert failed.reason == "the whole interval is beyond the lower limit 0"


def test_a_limit_at_zero_is_a_limit() -> None:
    assert compare(measured(1.0, 0.5, 1.5), Bound("above 0", lower=0.0), "interval", False).status == "pass"
    assert compare(measured(-1.0, -1.5, -0.5), Bound("above 0", lower=0.0), "interval", False).status == "fail"
    assert compare(measured(-1.0, -1.5, -0.5), Bound("below 0", upper=0.0), "interval", False).status == "pass"


def test_a_misfit_is_an_error_that_shows_the_number_there_is() -> None:
    misfit = Bound("below 2", misfit="it does not fit")
    assert compare(measured(1.0, 0.5, 1.5, variant=7.0), misfit, "interval", False) == Decision(
        "error", "below 2", "1", None, "it does not fit", failure="usage"
    )
    own = measured(1.0, None, None, variant=7.0).model_copy(update={"change": None})
    assert compare(own, misfit, "interval", False).found == "7"
    nothing = own.model_copy(update={"variant": None})
    assert compare(nothing, misfit, "interval", False).found == "nothing compared"
    assert compare(nothing, UPPER, "interval", False).because == "m has no comparison with the reference"


def test_a_unit_that_speaks_for_itself_is_not_written() -> None:
    assert compare(measured(0.5, 0.25, 0.75, unit="share"), UPPER, "interval", False).found == (
        "0.5, 95 % interval [0.25, 0.75]"
    )


def test_a_decision_withheld_keeps_what_it_said_and_loses_its_p_value() -> None:
    first = Decision("pass", "e", "f", 0.5, "b", 0.01, reason="r")
    assert first.withhold("why") == Decision("inconclusive", "e", "f", 0.5, "b; why", None, reason="r; why")
    assert first.withhold("why", "error").status == "error"
    assert Decision("pass", "e", "f", 0.5, "b").withhold("why").reason == ""
