"""The measure ``coverage`` on tables made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.measures.coverage import COLUMNS, Coverage
from harness.records import Measurement, Skipped
from tests.helpers.results import measurement, with_skipped

EMPTY: dict[str, Any] = {
    "name": "", "units": 0, "parameters": 0, "bytes": 0, "compressed": False, "missing": False,
    "seen": "", "changed": "", "damaged": "",
}  # fmt: skip


def bits(*values: int) -> str:
    return np.packbits(np.array(values, dtype=bool)).tobytes().hex()


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    totals = [{"side": s, "kind": "total", "parameters": 100, "bytes": 200} for s in ("reference", "variant")]
    return pd.DataFrame([EMPTY | row for row in (*totals, *rows)], columns=list(COLUMNS))


def part(side: str = "variant", **fields: Any) -> dict[str, Any]:
    own = {"side": side, "kind": "experts", "name": "mlp.experts.up", "units": 4, "parameters": 40, "bytes": 40}
    return own | {"seen": bits(1, 0, 0, 1), "changed": bits(1, 1, 0, 0), "damaged": bits(0, 0, 1, 0)} | fields


def found(frame: pd.DataFrame) -> dict[str, Measurement | Skipped]:
    return with_skipped(Coverage().measure(frame))


def test_two_dense_models_leave_nothing_untouched() -> None:
    for entry in found(table()).values():
        assert (measurement(entry).change, measurement(entry).basis) == (0.0, "counted")


def test_untouched_units_are_a_share_of_parameters_and_of_bytes() -> None:
    metrics = found(table(part("reference", seen=bits(1, 1, 0, 1)), part()))
    parameters = measurement(metrics["coverage.untouched_parameters"])
    assert [parameters.reference, parameters.variant] == pytest.approx([0.1, 0.2])
    size = measurement(metrics["coverage.untouched_bytes"])
    assert [size.reference, size.variant] == pytest.approx([0.05, 0.1])
    assert "mlp.experts.up" in parameters.method


def test_only_untouched_units_count_as_changed_or_damaged() -> None:
    plain = found(table(part()))
    assert measurement(plain["coverage.untouched_changed"]).change == pytest.approx(0.1)
    assert measurement(plain["coverage.untouched_damaged"]).change == 0
    assert measurement(plain["coverage.untouched_compressed"]).change == 0
    compressed = found(table(part(compressed=True)))
    assert measurement(compressed["coverage.untouched_changed"]).change == 0
    assert measurement(compressed["coverage.untouched_damaged"]).change == pytest.approx(0.1)
    assert measurement(compressed["coverage.untouched_compressed"]).change == pytest.approx(0.2)


def test_what_the_variant_lacks_is_a_share_of_the_reference() -> None:
    gone = part("reference", kind="unread", name="mtp.fc", units=1, parameters=5, seen=bits(0), missing=True)
    lost = measurement(found(table(gone))["coverage.missing"])
    assert lost.change == pytest.approx(0.05)
    assert "mtp.fc" in lost.method


def test_layers_are_weighed_by_their_weights_and_named() -> None:
    layers = [("a", True, 30), ("b", True, 30), ("c", False, 20)]
    rows = [
        {"side": "variant", "kind": "stated", "name": name, "compressed": done, "parameters": size}
        for name, done, size in layers
    ]
    plain = measurement(found(table(*rows))["coverage.unquantized"])
    assert plain.change == 0.25
    assert plain.method == "2 of 3 layers that the config speaks of are quantized; not: c"


def test_tensors_that_are_not_finite_are_counted_and_named() -> None:
    rows = [{"side": "variant", "kind": "non_finite", "name": f"experts.up, expert {n}"} for n in range(2)]
    bad = measurement(found(table(*rows))["coverage.non_finite"])
    assert (bad.change, bad.method) == (2.0, "experts.up, expert 0, experts.up, expert 1")
