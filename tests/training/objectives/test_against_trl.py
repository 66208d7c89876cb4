"""Losses against those of trl, on the same logits and models. Needs trl: pip install lm-shipcheck[compare]."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from harness.testing.models import tiny_llama, tiny_tokenizer
from harness.training.examples import Example, make_batch
from harness.training.objectives import Preference
from harness.training.objectives._reading import Reader
from harness.training.objectives._rows import Divergence, divergence
from harness.training.objectives._terms import log_likelihoods
from tests.helpers.objectives import loss_of, seen

pytestmark = pytest.mark.slow
trl = pytest.importorskip("trl", reason="trl is not installed")


@pytest.mark.parametrize("temperature", [1.0, 0.7, 4.0])
@pytest.mark.parametrize(
    ("beta", "kind"), [(0.0, "forward"), (1.0, "reverse"), (0.5, "jensen_shannon"), (0.2, "jensen_shannon")]
)
def test_divergences_are_those_of_generalized_distillation(beta: float, kind: Divergence, temperature: float) -> None:
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    chance = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 4, 9, 50, generator=chance)
    labels = torch.randint(0, 50, (4, 9), generator=chance)
    labels[0, 6:] = labels[2, :3] = -100
    wanted = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature)
    scored = labels != -100
    found = divergence(student[scored], teacher[scored], kind, temperature, beta or 0.5)
    torch.testing.assert_close(found.mean(), wanted, rtol=1e-5, atol=1e-7)


def test_the_loss_of_pairs_is_that_of_direct_preference_optimization(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    rows = {"prompt": ["ab", "cde"], "chosen": ["fgh", "ij"], "rejected": ["klmno", "pq"]}
    policy, start = tiny_llama(seed=1), tiny_llama(seed=2)
    settings = trl.DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], per_device_train_batch_size=2, beta=0.3, bf16=False
    )
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=start,
        args=settings,
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=tokenizer,
    )
    given = next(iter(trainer.get_train_dataloader()))
    wanted = trainer.compute_loss(policy.eval(), given)
    batch = make_batch(_pair(given), range(4))
    with torch.no_grad():
        before = log_likelihoods(Reader("start", start.eval()).read(batch), batch)
        found = loss_of(Preference(beta=0.3), seen(batch, Reader("policy", policy).read(batch), before=before))
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-5, atol=1e-6)


def _pair(given: Mapping[str, Any]) -> list[Example]:
    """trl's texts, the preferred ones first, in pairs."""
    ids, mask, learned = (given[name] for name in ("input_ids", "attention_mask", "completion_mask"))

    def example(row: int) -> Example:
        text: Tensor = ids[row][mask[row].bool()]
        return Example(text, int(learned[row].nonzero()[0]))

    pairs = len(ids) // 2
    return [example(row + side * pairs) for row in range(pairs) for side in (0, 1)]
