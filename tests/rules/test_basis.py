"""Whether a number was counted is what its basis says, never what its method is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pandas as pd
import pytest
from pydantic import ValidationError

from harness.judge import judge
from harness.measures import Measure
from harness.planning.specs import GateSpec, RuleSpec
from harness.records import Basis, Measurement, Metric, Skipped
from harness.rules import Rule
from harness.rules.at_least import AtLeast
from harness.rules.not_worse import NotWorse

EXACT_MATCH = Metric(name="match.exact", unit="share", better="higher", sides=True, spread="paired", spread_size=0.05)


class Match(Measure):
    """The share of answers that are exactly right."""

    table: ClassVar[str] = "answers"
    metrics: ClassVar[tuple[Metric, ...]] = (EXACT_MATCH,)
    basis: Basis = "sampled"

    def measure(self, table: pd.DataFrame) -> Sequence[Measurement | Skipped]:
        """On equal items both intervals have no width, as those of a bootstrap would."""
        reference, variant = float(table["reference"].mean()), float(table["variant"].mean())
        change = variant - reference
        return [
            Measurement(
                name="match.exact", unit="share", better="higher", change=change, low=change, high=change,
                variant_low=variant, variant_high=variant, n=len(table), clusters=len(table),
                basis=self.basis, method="exact match, mean over items", reference=reference, variant=variant,
            )
        ]  # fmt: skip


ITEMS = pd.DataFrame({"reference": [1.0] * 10, "variant": [1.0] * 10})


def statuses(rule: Rule, basis: Basis) -> list[str]:
    gate = GateSpec(name="g", source="g", rules=(RuleSpec(rule=rule, where="g:1"),))
    found = [entry for entry in Match(basis=basis).measure(ITEMS) if isinstance(entry, Measurement)]
    return [verdict.status for verdict in judge([gate], found, [], identical=False)]


@pytest.mark.parametrize(
    "rule",
    [
        NotWorse(metric="match.*", why="w", margin=0.02),
        AtLeast(metric="match.*", why="w", limit=-0.02, of="change"),
        NotWorse(metric="match.*", why="w", margin=0.02, min_documents=50),
    ],
)
def test_ten_equal_items_under_a_method_called_exact_match_are_a_sample(rule: Rule) -> None:
    assert statuses(rule, "sampled") == ["inconclusive"]
    assert statuses(rule, "counted") == ["pass"]


def test_at_an_interim_look_such_a_measure_keeps_only_what_was_counted() -> None:
    from harness.statistics import Intervals

    (sampled,), (counted,) = (Match(basis=basis).measure_at(ITEMS, Intervals()) for basis in ("sampled", "counted"))
    assert isinstance(sampled, Measurement)
    assert isinstance(counted, Measurement)
    assert (sampled.low, sampled.variant_high) == (None, None)
    assert (counted.low, counted.variant_high) == (0.0, 1.0)


def test_a_measurement_without_a_basis_is_refused() -> None:
    (found,) = Match().measure(ITEMS)
    fields: dict[str, Any] = found.model_dump(exclude={"basis"})
    with pytest.raises(ValidationError, match="basis"):
        Measurement(**fields)
