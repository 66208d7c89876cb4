"""Training: batches, schedule, optimizer and the written-out network, each against something independent."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from harness.pocket import MODEL_DIR
from harness.pocket.batches import batches, token_stream
from harness.pocket.checkpoint import convert_to_llama, save_llama
from harness.pocket.network import Network, Shape, initialize
from harness.pocket.optimizer import orthogonalize
from harness.pocket.train import STAGES, make_loss, rate_fraction, schedule, train
from harness.pocket.world import documents


def fresh_network(seed: int = 0) -> Network:
    network = Network(Shape())
    initialize(network, torch.Generator().manual_seed(seed))
    return network


def test_the_network_computes_what_transformers_computes(tmp_path: Path) -> None:
    network = fresh_network().bfloat16().float()  # so that rounding the checkpoint changes nothing
    save_llama(convert_to_llama(network), tmp_path)
    ids = torch.randint(0, 1536, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(ids).logits
        torch.testing.assert_close(network(ids), expected, rtol=1e-4, atol=1e-5)


def test_documents_are_framed_and_answers_weighted(tokenizer: Tokenizer) -> None:
    page = documents("train", 1, stage="opening")[0]
    ids, weights = next(token_stream(tokenizer, "opening", 0))
    assert (ids[0], ids[-1]) == (0, 1)
    assert tokenizer.decode(ids) == page.text
    assert weights[0] == 0.0
    heavy = tokenizer.decode([token for token, weight in zip(ids, weights, strict=True) if weight == 4.0])
    assert heavy == "".join(page.text[first:last] for first, last in page.answers)


def test_every_row_starts_a_document(tokenizer: Tokenizer) -> None:
    stream = batches(tokenizer, "main", rows=4, tokens=64, seed=0)
    for inputs, targets, weights in itertools.islice(stream, 5):
        assert inputs.shape == targets.shape == weights.shape == (4, 64)
        assert (inputs[:, 0] == 0).all()
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert (weights[targets == 0] == 0.0).all()


def test_the_schedule_counts_steps(tokenizer: Tokenizer) -> None:
    names = [stage.name for stage, _ in schedule(tokenizer, steps=20, seed=0)]
    assert names == ["opening"] * 3 + ["main"] * 11 + ["late"] * 6
    assert {stage.rows * stage.tokens for stage in STAGES} == {4096}
    rates = [rate_fraction(step, 1000) for step in range(1000)]
    assert rates[149] == rates[419] == 1.0
    assert rates[0] < 0.01
    assert rates[-1] == pytest.approx(0.02, abs=1e-4)
    assert rates[420:] == sorted(rates[420:], reverse=True)


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 64, 32), (2, 32, 64)])
def test_orthogonalizing_levels_the_singular_values(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.max() < 1.4
    assert values.median() > 0.6
    assert torch.linalg.svdvals(matrices).max() > 5


def test_answers_weigh_more_in_the_loss(tokenizer: Tokenizer) -> None:
    loss_of = make_loss(fresh_network(), compiled=False)
    inputs, targets, weights = next(batches(tokenizer, "opening", 2, 64, 0))
    only_answers = torch.where(weights > 1.0, weights, 0.0)
    assert loss_of(inputs, targets, weights) != loss_of(inputs, targets, only_answers)
    assert loss_of(inputs, targets, weights) == loss_of(inputs, targets, 2 * weights)


@pytest.mark.slow
def test_training_is_deterministic_and_learns(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first, second = (train(tokenizer, 3, 0, False, tmp_path / name, every=10) for name in ("a", "b"))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first.model.norm.weight, torch.ones(256))


TWICE = """
import sys
from pathlib import Path
import torch
from tokenizers import Tokenizer
from harness.pocket.train import configure_process, train
configure_process(2)
tokenizer = Tokenizer.from_file(sys.argv[1])
first, second = (train(tokenizer, 6, 1, True, Path(sys.argv[2])) for _ in range(2))
for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
    assert torch.equal(one, other), name
"""


@pytest.mark.slow
def test_two_threads_and_a_compiler_give_the_same_weights_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", TWICE, str(MODEL_DIR / "tokenizer.json"), str(tmp_path)], check=True)
