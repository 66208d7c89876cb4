"""A few runs of the reference against itself; tests/bench/same_model.py makes the page of 200."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
import pytest

from tests.helpers.same_model import Setting, compare, crossed, setting


@pytest.fixture(scope="module")
def made() -> Setting:
    return setting(tasks=False)


def test_other_documents_batches_and_orders_of_one_model_always_pass(made: Setting) -> None:
    read: Counter[str] = Counter()
    embedding: Any = made.reference.model.get_input_embeddings()
    watch = embedding.register_forward_pre_hook(lambda _, inputs: read.update([str(inputs[0].tolist())]))
    runs = [run for seed in (1, 2) for run in compare(made, seed, 24, 2)]
    watch.remove()
    assert [run.verdict for run in runs] == ["pass"] * 4
    assert {verdict.status for run in runs for verdict in run.verdicts} == {"pass"}
    effects = [run.effects["logits.max_abs_diff"] for run in runs]
    assert max(effects) < 0.01
    assert len({run.parts for run in runs}) > 1
    # Whether other batches also round otherwise depends on the processor; that they are other batches does not. Ignored
    # arrangements would have the reference and both variants read each batch: none would be read only once.
    assert 1 in read.values(), "both sides read the same batches"


def test_runs_depend_on_their_seed_alone(made: Setting) -> None:
    first, again, other = (compare(made, seed, 8, 1)[0] for seed in (5, 5, 6))
    assert first == again
    # Effects may be 0 for every seed: whether other batches round otherwise depends on the processor.
    assert (first.budget, first.parts) != (other.budget, other.parts)


def test_answers_are_crossed_item_by_item() -> None:
    left = pd.DataFrame(
        {"task": "a", "metric": "m", "doc_id": [0, 1], "reference_score": [1.0, 0.0], "variant_score": [1.0, 0.0]}
    )
    right = left.assign(doc_id=[1, 0], reference_score=[0.5, 0.25], variant_score=[0.5, 0.25])
    found = crossed(left, right)
    assert found["reference_score"].tolist() == [1.0, 0.0]
    assert found["variant_score"].tolist() == [0.25, 0.5]
