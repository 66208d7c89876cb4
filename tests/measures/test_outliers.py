from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kurtosis

from harness.measures.outliers import Outliers
from harness.records import Skipped
from tests.helpers.results import by_name, measurement, measurements, number, with_skipped

TOKENS = 100


def channels_table(inputs: dict[str, dict[tuple[str, int], np.ndarray]], threshold: float = 6.0) -> pd.DataFrame:
    """The snapshot that a probe leaves, from the inputs (tokens, channels) of each module on each side."""
    rows = []
    for side, modules in inputs.items():
        for (module, layer), x in modules.items():
            for channel, values in enumerate(x.T):
                rows.append(
                    {
                        "side": side,
                        "module": module,
                        "layer": layer,
                        "channel": channel,
                        "max_abs": np.abs(values).max(),
                        "sum": values.sum(),
                        "sum_squares": (values**2).sum(),
                        "sum_fourth": (values**4).sum(),
                        "over_threshold": int((np.abs(values) >= threshold).sum()),
                        "tokens": len(values),
                    }
                )
    return pd.DataFrame(rows)


def inputs(layers: int = 8, width: int = 6, seed: int = 0) -> dict[tuple[str, int], np.ndarray]:
    generator = np.random.default_rng(seed)
    return {(f"layers.{i}.q", i): generator.uniform(-1, 1, size=(TOKENS, width)) for i in range(layers)}


def spiked(layers: int, tokens: int, channel: int = 2) -> dict[tuple[str, int], np.ndarray]:
    """Channel ``channel`` is at 6 in the first ``tokens`` tokens of the first ``layers`` of 8 layers."""
    x = inputs()
    for i in range(layers):
        x[(f"layers.{i}.q", i)][:tokens, channel] = 6.0
    return x


def count(x: dict[tuple[str, int], np.ndarray], measure: Outliers | None = None) -> float:
    measure = measure or Outliers()
    table = channels_table({"reference": inputs(), "variant": x}, measure.threshold)
    found = measurement(measure.measure(table)[0])
    assert found.reference == 0.0
    assert found.change == found.variant
    return number(found.variant)


@pytest.mark.parametrize(
    ("layers", "tokens", "wanted"),
    [
        (2, 24, 1),  # 2 of 8 layers, 48 of 800 positions: exactly a quarter, exactly 6 %
        (2, 23, 0),  # 46 of 800 positions
        (1, 100, 0),  # one layer of eight is less than a quarter
        (8, 6, 1),
        (8, 5, 0),
        (0, 0, 0),
    ],
)
def test_criterion_of_llm_int8(layers: int, tokens: int, wanted: int) -> None:
    assert count(spiked(layers, tokens)) == wanted


def test_the_same_channel_in_several_layers_is_one_outlier_and_different_channels_are_none() -> None:
    assert count(spiked(8, 50)) == 1
    scattered = inputs()
    for i in range(6):
        scattered[(f"layers.{i}.q", i)][:50, i] = -6.0
    assert count(scattered) == 0


def test_settings_belong_to_the_definition_and_reach_the_probe() -> None:
    assert Outliers(threshold=3.0).probe_settings() == {"threshold": 3.0}
    assert count(spiked(1, 100), Outliers(layer_share=0.125)) == 1
    assert count(spiked(8, 5), Outliers(position_share=0.05)) == 1


def test_modules_outside_the_decoder_do_not_count_and_widths_are_apart() -> None:
    x = spiked(8, 50)
    x[("lm_head", -1)] = np.full((TOKENS, 6), 9.0)
    for i in range(8):
        wide = np.zeros((TOKENS, 12))
        wide[:, 5] = 7.0
        x[(f"layers.{i}.down", i)] = wide
    assert count(x) == 2


def test_figures_of_each_module_on_both_sides() -> None:
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(TOKENS, 6)), generator.standard_t(3, size=(TOKENS, 6))
    table = channels_table({"reference": {("layers.0.q", 0): x}, "variant": {("layers.0.q", 0): y}})
    found = by_name(Outliers().measure(table), "layers.0.q")
    for side, values in (("reference", x), ("variant", y)):
        largest = np.abs(values).max(axis=0)
        assert getattr(found["outliers.max_to_median"], side) == pytest.approx(largest.max() / np.median(largest))
        about_zero = np.concatenate([values.ravel(), -values.ravel()])
        assert getattr(found["outliers.kurtosis"], side) == pytest.approx(kurtosis(about_zero, fisher=False))
    for entry in found.values():
        assert entry.change == number(entry.variant) - number(entry.reference)
        assert entry.low is None
        assert "no interval" in entry.method


def test_equal_sides_change_nothing_exactly() -> None:
    for entry in measurements(
        Outliers().measure(channels_table({"reference": spiked(8, 50), "variant": spiked(8, 50)}))
    ):
        assert entry.change == entry.neutral == 0.0


@pytest.mark.parametrize("side", ["reference", "variant"])
def test_non_finite_inputs_name_their_side(side: str) -> None:
    table = channels_table({"reference": inputs(), "variant": inputs()})
    table.loc[(table["side"] == side) & (table["module"] == "layers.3.q") & (table["channel"] == 1), "max_abs"] = np.nan
    found = measurements(Outliers().measure(table))
    assert found[0].non_finite == side
    assert {entry.non_finite for entry in by_name(found, "layers.3.q").values()} == {side}
    assert {entry.non_finite for entry in by_name(found, "layers.4.q").values()} == {None}


def test_what_one_side_lacks_or_zero_inputs_are_skipped_by_name() -> None:
    both = inputs()
    table = channels_table({"reference": both, "variant": {k: v for k, v in both.items() if k[1] != 3}})
    found = with_skipped(Outliers().measure(table), "layers.3.q")
    assert all(isinstance(entry, Skipped) and "not observed on the variant" in entry.reason for entry in found.values())
    both[("layers.5.q", 5)] = np.zeros((TOKENS, 6))
    found = with_skipped(Outliers().measure(channels_table({"reference": both, "variant": both})), "layers.5.q")
    assert all(isinstance(entry, Skipped) and "zero" in entry.reason for entry in found.values())


def test_empty_table_is_skipped() -> None:
    table = channels_table({"reference": inputs(), "variant": inputs()}).iloc[:0]
    assert [type(entry) for entry in Outliers().measure(table)] == [Skipped] * 3
