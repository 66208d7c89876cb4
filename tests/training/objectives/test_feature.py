"""The objective feature: hidden states through a projection, attention probabilities, relations of values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from harness.errors import BackendError
from harness.testing.models import tiny_gpt2, tiny_llama
from harness.training.examples import Batch
from harness.training.objectives import Feature
from harness.training.objectives._outputs import AttentionInputs, Seen
from harness.training.objectives._relations import attention_loss, hidden_loss, pair_evenly, value_loss
from tests.helpers.objectives import batch, logits, loss_of, outputs


def attention(of: Batch, seed: int, heads: int = 4, shared: int = 2, size: int = 6) -> AttentionInputs:
    chance = torch.Generator().manual_seed(seed)
    texts, tokens = of.ids.shape
    query, key, value = (torch.randn(texts, count, tokens, size, generator=chance) for count in (heads, shared, shared))
    return AttentionInputs(query, key, value, size**-0.5)


def relations(query_TE: Tensor, key_TE: Tensor, scale: float, token: int) -> np.ndarray:
    """Probabilities of the tokens up to ``token``."""
    scores = query_TE[token].double().numpy() @ key_TE[: token + 1].double().numpy().T * scale
    return np.asarray(softmax(scores))


def mean_divergence(of: Batch, pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    return float(np.mean([(p * np.log(p / q)).sum() for p, q in pairs]))


def positions(of: Batch) -> list[tuple[int, int]]:
    return [(row, place - 1) for row, place in of.scored.nonzero().tolist()]


@pytest.mark.parametrize(
    ("students", "teachers", "pairs"),
    [
        (2, 4, [(0, 1), (1, 3)]),
        (3, 4, [(0, 1), (1, 2), (2, 3)]),
        (4, 4, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        (1, 6, [(0, 5)]),
        (5, 12, [(0, 2), (1, 4), (2, 7), (3, 9), (4, 11)]),
    ],
)
def test_blocks_are_paired_by_depth(students: int, teachers: int, pairs: list[tuple[int, int]]) -> None:
    assert pair_evenly(students, teachers) == pairs


def test_the_hidden_loss_is_the_unexplained_share_of_each_channel() -> None:
    chance = torch.Generator().manual_seed(0)
    teacher, projection = torch.randn(50, 8, generator=chance), torch.randn(8, 5, generator=chance)
    student = torch.randn(50, 5, generator=chance)
    error = (student.double() @ projection.double().T - teacher.double()).numpy()
    wanted = float(np.mean((error**2).mean(0) / teacher.double().numpy().var(0)))
    assert float(hidden_loss(student, teacher, projection)) == pytest.approx(wanted, rel=1e-5)


def test_predicting_means_costs_one_and_large_channels_count_no_more() -> None:
    teacher = torch.randn(200, 6, generator=torch.Generator().manual_seed(1)) + 3
    mean = teacher.mean(0).expand(200, 6)
    assert float(hidden_loss(mean, teacher, torch.eye(6))) == pytest.approx(1, rel=1e-4)
    larger = torch.tensor([1.0, 1, 1000, 1, 1, 1])
    wide = hidden_loss(mean * larger, teacher * larger, torch.eye(6))
    assert float(wide) == pytest.approx(1, rel=1e-4)


def test_channels_that_do_not_vary_are_left_out() -> None:
    teacher = torch.randn(20, 3)
    teacher[:, 1] = 2.0
    found = hidden_loss(torch.zeros(20, 3), teacher, torch.eye(3))
    assert found.isfinite()
    assert torch.equal(found, hidden_loss(torch.zeros(20, 2), teacher[:, [0, 2]], torch.eye(2)))


def test_attention_is_compared_head_by_head_over_earlier_tokens() -> None:
    of = batch((7, 4), (1, 2))
    student, teacher = attention(of, 1), attention(of, 2)
    pairs = [
        (
            relations(teacher.query[row, head], teacher.key[row, head // 2], teacher.scale, token),
            relations(student.query[row, head], student.key[row, head // 2], student.scale, token),
        )
        for row, token in positions(of)
        for head in range(4)
    ]
    assert float(attention_loss(student, teacher, of)) == pytest.approx(mean_divergence(of, pairs), rel=1e-4)
    assert abs(float(attention_loss(teacher, teacher, of))) < 1e-6


def test_values_of_other_heads_are_regrouped() -> None:
    of = batch((7, 4), (1, 2))
    student, teacher = attention(of, 1, shared=2, size=6), attention(of, 2, shared=4, size=5)

    def grouped(each: AttentionInputs, row: int, head: int) -> Tensor:
        joined = torch.cat(list(each.value[row]), -1)  # [T, heads·E]
        return joined.chunk(2, -1)[head]

    pairs = [
        tuple(
            relations(value := grouped(each, row, head), value, value.shape[-1] ** -0.5, token)
            for each in (teacher, student)
        )
        for row, token in positions(of)
        for head in range(2)
    ]
    wanted = mean_divergence(of, [(first, second) for first, second in pairs])
    assert float(value_loss(student, teacher, 2, of)) == pytest.approx(wanted, rel=1e-4)


def test_later_tokens_and_padding_do_not_matter() -> None:
    of = batch((7, 4), (1, 1))
    student, teacher = attention(of, 1), attention(of, 2)
    before = attention_loss(student, teacher, of), value_loss(student, teacher, 2, of)
    for tensor in (student.query, student.key, student.value):
        tensor[1, :, 3:] += 1  # predicts nothing, and no token before it sees it
    assert torch.equal(before[0], attention_loss(student, teacher, of))
    assert torch.equal(before[1], value_loss(student, teacher, 2, of))
    student.value[1, :, 2] += 1
    assert not torch.equal(before[1], value_loss(student, teacher, 2, of))


def test_a_projection_begins_as_the_identity_or_is_drawn_from_the_seed() -> None:
    teacher, same, narrow = tiny_llama(num_hidden_layers=4), tiny_llama(), tiny_gpt2()
    objective = Feature()
    for projection in objective.make_parts(same, teacher, 0).parameters():
        assert torch.equal(projection, torch.eye(64))
    first, again, other = (list(objective.make_parts(narrow, teacher, seed).parameters()) for seed in (1, 1, 2))
    assert [tuple(each.shape) for each in first] == [(64, 48), (64, 48)]
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_projections_are_learned_and_belong_to_their_pair() -> None:
    of = batch()
    student_blocks, teacher_blocks = ([logits(of, seed + side, 12).float() for seed in (1, 3)] for side in (0, 1))
    student = outputs(of, logits(of, 9), blocks=student_blocks)
    teacher = outputs(of, logits(of, 8), blocks=[teacher_blocks[0], teacher_blocks[0], teacher_blocks[1]])
    parts = torch.nn.Module()
    for index in range(2):
        parts.register_parameter(f"projection_{index}", torch.nn.Parameter(torch.eye(12) * (index + 1)))
    found = loss_of(Feature(), Seen(of, student, teacher, parts))
    wanted = (
        hidden_loss(of.select(student_blocks[0]), of.select(teacher_blocks[0]), torch.eye(12))
        + hidden_loss(of.select(student_blocks[1]), of.select(teacher_blocks[1]), 2 * torch.eye(12))
    ) / 2
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in parts.parameters())


def test_other_heads_are_refused_for_attention_with_what_works() -> None:
    of = batch()
    student = outputs(of, logits(of, 1), attention=[attention(of, 1, heads=2, shared=2)])
    teacher = outputs(of, logits(of, 2), attention=[attention(of, 2, heads=4)])
    with pytest.raises(BackendError, match=r"has 2, the teacher 4.*match: values"):
        Feature(match="attention").terms(Seen(of, student, teacher, torch.nn.Module()))
    assert loss_of(Feature(match="values"), Seen(of, student, teacher, torch.nn.Module())).isfinite()


def test_what_is_read_follows_what_is_matched() -> None:
    assert Feature().reads == ("blocks",)
    assert Feature(match="attention").reads == Feature(match="values").reads == ("attention",)
