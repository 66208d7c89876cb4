"""Logit statistics row by row: scipy agrees, masks count nothing, and what is not a number stays visible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.lockstep.kernels import EAGER
from harness.lockstep.logit_statistics import extra_statistics, logit_statistics, logit_sums
from tests.helpers.logit_reference import agree, expected


def rows_of(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


finite = st.floats(-30, 30, width=32)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), vocabulary=st.integers(2, 40), rows=st.integers(1, 5))
def test_any_logits(data: st.DataObject, vocabulary: int, rows: int) -> None:
    row = st.lists(finite, min_size=vocabulary, max_size=vocabulary)
    reference, variant = (rows_of(data.draw(st.lists(row, min_size=rows, max_size=rows))) for _ in "rv")
    targets = torch.tensor(data.draw(st.lists(st.integers(0, vocabulary - 1), min_size=rows, max_size=rows)))
    found = pd.DataFrame({k: v.numpy() for k, v in logit_statistics(reference, variant, targets).items()})
    # tiny probabilities below float32 are lost to the kernel, so agreement is absolute
    agree(found, expected(reference.double(), variant.double(), targets), atol=2e-4)
    assert (found["kl"] > -1e-5).all()
    assert (found["total_variation"] >= 0).all()
    same = logit_statistics(reference, reference.clone(), targets)
    for column in ("kl", "reverse_kl", "max_abs_diff", "mean_abs_diff", "total_variation"):
        assert (same[column] == 0).all()


def test_ids_that_both_sides_mask_count_nothing() -> None:
    torch.manual_seed(0)
    reference, variant = torch.randn(4, 12) * 3, torch.randn(4, 12) * 3
    masked, also = (z.clone().index_fill_(1, torch.tensor([2, 7]), float("-inf")) for z in (reference, variant))
    kept = [i for i in range(12) if i not in (2, 7)]
    targets = torch.tensor([0, 1, 3, 11])
    found = logit_statistics(masked, also, targets)
    wanted = logit_statistics(reference[:, kept], variant[:, kept], torch.tensor([kept.index(t) for t in targets]))
    for name in found.keys() - {"reference_top1", "variant_top1", "mean_abs_diff"}:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["mean_abs_diff"], wanted["mean_abs_diff"] * 10 / 12, rtol=1e-5, atol=0)


def test_an_id_that_one_side_alone_masks_is_infinitely_far() -> None:
    reference, variant = rows_of([[1.0, 2.0, 0.5]]), rows_of([[1.0, 2.0, float("-inf")]])
    found = logit_statistics(reference, variant, torch.tensor([0]))
    assert found["kl"].isinf().all()
    assert found["max_abs_diff"].isinf().all()
    assert found["reverse_kl"].isfinite().all()
    wanted = scipy.stats.entropy(*(scipy.special.softmax(z.numpy()[0]) for z in (variant, reference)))
    assert found["reverse_kl"].item() == pytest.approx(wanted)
    swapped = logit_statistics(variant, reference, torch.tensor([0]))
    assert swapped["kl"].item() == pytest.approx(wanted)
    assert swapped["reverse_kl"].isinf().all()
    missing = logit_statistics(reference, variant, torch.tensor([2]))
    assert missing["variant_nll"].item() == float("inf")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kernel", [logit_sums, EAGER.logits])
def test_what_is_not_a_number_is_seen_in_its_row_alone(value: float, kernel: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    reference, variant = torch.randn(5, 9), torch.randn(5, 9)
    variant[2, 4] = value
    found = logit_statistics(reference, variant, torch.zeros(5, dtype=torch.int64), kernel)
    for name in ("variant_nll", "kl", "reverse_kl", "variant_top1_p", "variant_entropy", "total_variation"):
        assert (~found[name].isfinite()).tolist() == [False, False, True, False, False], name
    assert found["reference_nll"].isfinite().all()


def test_the_first_of_equal_maxima_is_the_top() -> None:
    found = logit_statistics(rows_of([[0.0, 3.0, 3.0]]), rows_of([[float("nan"), 1.0, 2.0]]), torch.tensor([0]))
    assert found["reference_top1"].item() == 1
    assert found["variant_top1"].item() == -1


def test_large_logits_do_not_overflow() -> None:
    reference, variant = rows_of([[5e4, 5e4 - 2, -3e4]]), rows_of([[4e4, 4e4 - 1, 0.0]])
    found = logit_statistics(reference, variant, torch.tensor([1]))
    wanted = expected(reference.double(), variant.double(), torch.tensor([1]))
    # float32 logits near 5e4 are 0.004 apart
    np.testing.assert_allclose(found["kl"], wanted["kl"], rtol=1e-2)
    np.testing.assert_allclose(found["reference_nll"], wanted["reference_nll"], atol=4e-3)


def test_half_precision_logits_are_taken_as_the_numbers_they_are() -> None:
    torch.manual_seed(0)
    reference, variant = ((torch.randn(6, 30) * 4).to(torch.bfloat16) for _ in "rv")
    targets = torch.arange(6)
    found = pd.DataFrame({k: v.numpy() for k, v in logit_statistics(reference, variant, targets).items()})
    agree(found, expected(reference.double(), variant.double(), targets))


def test_the_position_of_a_maximum_may_be_any_of_many() -> None:
    reference, variant = torch.zeros(2, 70_000), torch.zeros(2, 70_000)
    reference[0, 69_999] = variant[1, 40_000] = 1.0
    found = logit_statistics(reference, variant, torch.tensor([0, 69_999]))
    assert found["reference_top1"].tolist() == [69_999, 0]
    assert found["variant_top1"].tolist() == [0, 40_000]


def test_a_vocabulary_larger_than_a_piece_is_taken_row_by_row() -> None:
    reference = torch.zeros(3, 2**17 + 1)
    found = logit_statistics(reference, reference + 1, torch.zeros(3, dtype=torch.int64))
    for name, wanted in (("mean_abs_diff", 1.0), ("max_abs_diff", 1.0), ("reference_nll", np.log(2**17 + 1))):
        np.testing.assert_allclose(found[name], [wanted] * 3, rtol=1e-6)


def test_each_row_has_its_own_numbers_whatever_the_pieces() -> None:
    """As many rows as entries, so that a sum over the other dimension would have the same shape."""
    torch.manual_seed(1)
    reference, variant = torch.randn(30, 30) * 3, torch.randn(30, 30) * 3
    targets = torch.arange(30)
    found = pd.DataFrame({k: v.numpy() for k, v in logit_statistics(reference, variant, targets).items()})
    agree(found, expected(reference.double(), variant.double(), targets))
    for row in (0, 17, 29):
        alone = logit_statistics(reference[row, None], variant[row, None], targets[row, None])
        for name, values in alone.items():
            assert values.item() == pytest.approx(found[name][row], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("extra_ids", [1, 3, 5])
def test_ids_of_one_side_alone_have_their_share_and_may_be_the_top(extra_ids: int) -> None:
    """Beside a softmax over all ids; rows 1 and 4 have their largest logit among the extra ones, row 2 a tie."""
    torch.manual_seed(2)
    common, extra = torch.randn(5, 6), torch.randn(5, extra_ids)
    extra[1, -1] = extra[4, 0] = 9.0
    common[2, 3] = extra[2, 0] = 8.0
    targets = torch.tensor([4, 0, 1, 2, 3])
    found = logit_statistics(common, common, targets)
    mass, top = extra_statistics(extra, common, targets, found["reference_nll"], found["reference_top1"])
    every = torch.cat([common, extra], dim=1).double()
    torch.testing.assert_close(mass, every.softmax(-1)[:, 6:].sum(-1), rtol=1e-6, atol=1e-9)
    assert top.tolist() == every.argmax(-1).tolist()
    assert top[2] == 3, "the common id wins a tie"
    assert top.dtype == torch.int32


def test_without_extra_ids_nothing_lies_outside_and_a_row_without_a_top_stays_so() -> None:
    common, targets = rows_of([[1.0, 2.0], [float("nan"), 0.0]]), torch.tensor([0, 1])
    found = logit_statistics(common, common, targets)
    nll, top1 = found["reference_nll"], found["reference_top1"]
    mass, top = extra_statistics(torch.empty(2, 0), common, targets, nll, top1)
    assert mass.tolist() == [0.0, 0.0]
    assert top.tolist() == [1, -1]
    mass, top = extra_statistics(rows_of([[0.0], [50.0]]), common, targets, nll, top1)
    assert mass[0].item() == pytest.approx(1 / (1 + np.e + np.e**2))
    assert mass.isnan().tolist() == [False, True]
    assert top.tolist() == [1, -1]
