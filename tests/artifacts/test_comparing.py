"""Rows about two outputs, against definitions written down again in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from harness.artifacts.comparing import COLUMNS, DifferentShapesError, module_rows, relative_error, table, token_rows

IDS = torch.tensor([0, 3, 1, 2])


def test_tokens_hold_the_divergence_of_the_second_from_the_first() -> None:
    random = np.random.default_rng(0)
    before, after = random.normal(size=(2, 4, 6)).astype(np.float32)
    sides = ({"document/0": torch.from_numpy(each)} for each in (before, after))
    rows = table(list(token_rows("reloaded", [(7, IDS)], *sides)))
    p, q = log_softmax(before.astype(float), 1), log_softmax(after.astype(float), 1)
    assert dict(rows.dtypes.astype(str)) == {name: str(np.dtype(kind)) for name, kind in COLUMNS.items()} | {
        name: str(rows.dtypes[name]) for name, kind in COLUMNS.items() if kind == "str"
    }
    assert rows["document"].tolist() == [7, 7, 7]
    assert rows["position"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(rows["kl"], (np.exp(p) * (p - q)).sum(1)[:-1], rtol=1e-5)
    np.testing.assert_allclose(rows["max_abs_diff"], np.abs(before - after).max(1)[:-1], rtol=1e-6)


def test_equal_logits_give_exactly_nothing_and_nan_stays_visible() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    same = table(list(token_rows("live", [(0, IDS)], {"document/0": logits}, {"document/0": logits.clone()})))
    assert (same["kl"] == 0).all()
    assert (same["max_abs_diff"] == 0).all()
    broken = logits.clone()
    broken[1, 2] = torch.nan
    rows = table(list(token_rows("live", [(0, IDS)], {"document/0": logits}, {"document/0": broken})))
    assert rows["kl"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize("other", [torch.zeros(4, 7), torch.zeros(4, 6, dtype=torch.bfloat16)])
def test_logits_of_another_kind_are_not_compared(other: torch.Tensor) -> None:
    with pytest.raises(DifferentShapesError, match=r"the model in memory are torch\.float32 for 6"):
        list(token_rows("reloaded", [(0, IDS)], {"document/0": torch.zeros(4, 6)}, {"document/0": other}))


def test_modules_are_compared_by_their_worst_tensor_and_missing_ones_are_changed() -> None:
    one = torch.ones(3, 4)
    before = {"document/0": one, "module/a": one, "module/b:x": one, "module/b:y": one, "module/gone": one}
    after = {"document/0": one, "module/a": one.clone(), "module/b:x": one, "module/b:y": one * 1.5, "module/new": one}
    rows = {row["name"]: row["error"] for row in module_rows("reloaded_module", before, after)}
    assert rows == {"a": 0.0, "b": pytest.approx(0.5), "gone": math.inf, "new": math.inf}


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.bfloat16, 2.0**-7)])
def test_what_rounding_may_do_depends_on_the_dtype(dtype: torch.dtype, allowed: float) -> None:
    sides = [{"module/a": torch.ones(2, 2, dtype=dtype)} for _ in range(2)]
    ((row),) = module_rows("live_module", *sides)
    assert row["allowed"] == pytest.approx(allowed)


def test_relative_differences_are_those_of_the_definition() -> None:
    old, new = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert relative_error(old, new) == pytest.approx(0.1)
    assert relative_error(torch.zeros(2), new) == math.inf
    assert relative_error(old, torch.tensor([3.0, math.nan])) == math.inf
    assert relative_error(old, torch.ones(3)) == math.inf
    nan = torch.tensor([math.nan, 1.0])
    assert relative_error(nan, nan.clone()) == 0.0


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), st.integers(0, 7), st.floats(0.5, 2.0))
def test_any_change_of_any_number_is_seen(values: list[float], at: int, factor: float) -> None:
    old = torch.tensor(values)
    new = old.clone()
    new[at % len(values)] *= factor
    assert (relative_error(old, new) == 0.0) == bool(torch.equal(old, new))
    assert relative_error(old, old.clone()) == 0.0
