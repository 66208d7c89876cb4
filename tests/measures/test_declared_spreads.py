"""What the forecast takes for the spread of a metric before anything is measured: a table that changes knowingly."""

from __future__ import annotations

import pytest

from harness.measures import Measure
from harness.measures.calibration import Calibration
from harness.measures.divergence import Divergence
from harness.measures.logits import Logits
from harness.measures.perplexity import Perplexity

SPREADS = {
    "calibration.brier": 0.01, "calibration.gap": 0.02, "calibration.squared_error": 0.03,
    "divergence.delta_p_mean": 0.01, "divergence.delta_p_rms": 1.5, "divergence.kl_mean": 1.5,
    "divergence.kl_p50": 1.5, "divergence.kl_p99": 2.5, "divergence.kl_p999": 5.0,
    "divergence.reverse_kl_mean": 1.5, "divergence.top1_agreement": 1.5, "divergence.total_variation": 1.5,
    "logits.mean_abs_diff": 0.25, "perplexity.nll_delta": 0.02, "perplexity.ratio": 0.02, "perplexity.value": 0.05,
}  # fmt: skip
MEASURES = (Calibration, Divergence, Logits, Perplexity)


def test_each_is_what_the_pages_of_forecasts_were_made_with() -> None:
    found = {metric.name: metric.spread_size for measure in MEASURES for metric in measure.metrics}
    assert {name: found[name] for name in SPREADS} == SPREADS


@pytest.mark.parametrize("measure", MEASURES)
def test_every_number_of_tokens_grows_with_documents(measure: type[Measure]) -> None:
    """A suite that draws documents as it needs them may ask for it at an interim look."""
    assert measure.by_document
