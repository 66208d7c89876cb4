from __future__ import annotations

import pandas as pd
import pytest

from harness.measures.memory import Memory
from tests.helpers.results import by_name, measurement, skipped, with_skipped


def weights_table(peak: bool = False) -> pd.DataFrame:
    rows = [
        ("reference", "embed", "Embedding", 1000, 4000),
        ("reference", "layers.0.q", "Linear", 64, 256),
        ("reference", "kv_cache", "kv_cache", 0, 512),
        ("variant", "embed", "Embedding", 1000, 4000),
        ("variant", "layers.0.q", "Linear", 64, 40),
        ("variant", "kv_cache", "kv_cache", 0, 512),
    ]
    if peak:
        rows += [("reference", "peak", "peak", 0, 9000), ("variant", "peak", "peak", 0, 7000)]
    return pd.DataFrame(rows, columns=["side", "module", "type", "parameters", "stored_bytes"])


def test_counts_are_exact() -> None:
    found = with_skipped(Memory().measure(weights_table()))
    wanted = {
        "memory.weight_bytes": (4256.0, 4040.0),
        "memory.bits_per_weight": (8 * 4256 / 1064, 8 * 4040 / 1064),
        "memory.kv_bytes_per_token": (512.0, 512.0),
    }
    for name, (reference, variant) in wanted.items():
        entry = measurement(found[name])
        assert (entry.reference, entry.variant) == (reference, variant)
        assert entry.change == entry.low == entry.high == variant - reference
        plain = "" if name == "memory.kv_bytes_per_token" else "; plain floats in the dtype of the files"
        assert entry.method == f"exact count{plain}"


def test_peak_is_measured_where_the_table_has_it() -> None:
    missing = with_skipped(Memory().measure(weights_table()))["memory.peak_bytes"]
    assert "not measured" in skipped(missing).reason
    found = by_name(Memory().measure(weights_table(peak=True)))["memory.peak_bytes"]
    assert (found.reference, found.variant, found.change) == (9000.0, 7000.0, -2000.0)
    assert found.low is None, "one measured peak is no exact count"


@pytest.mark.parametrize("side", ["reference", "variant"])
def test_a_missing_side_is_skipped_by_name(side: str) -> None:
    table = weights_table()
    for entry in Memory().measure(table[table["side"] != side]):
        assert side in skipped(entry).reason
