"""Texts that a model writes for a training: drawn token by token, the same ones for the same seed.

Legend: B texts, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from harness.errors import BackendError
from harness.models.language_model import TransformersModel, plain_decoding
from harness.progress import track
from harness.training.examples import Example

TOGETHER = 32
"""Texts that are written at the same time. The seed draws for all of them at once, so it decides what is drawn."""


def write_texts(
    name: str, model: PreTrainedModel, prompts: Sequence[Tensor], new_tokens: int, temperature: float, seed: int
) -> list[Example]:
    """What ``model`` writes after each prompt (1-D int64, at least one token); only that is to be learned.

    Prompts of one length go together, so nothing is padded. A text ends with an end token of the model, which belongs
    to it, or after ``new_tokens``. temperature: 0 takes the most probable token. The process keeps its random state.

    Raises BackendError for texts longer than the model's context, and for logits that are not finite.
    """
    _check_length(name, model, prompts, new_tokens)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    batches = [
        same[start : start + TOGETHER]
        for same in (list(places) for _, places in groupby(order, key=lambda place: len(prompts[place])))
        for start in range(0, len(same), TOGETHER)
    ]
    written: dict[int, Example] = {}
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for number, places in enumerate(track(f"{name} writes", batches)):
            torch.manual_seed(seed * 1_000_003 + number)
            texts = continue_batch(
                name, model, torch.stack([prompts[place] for place in places]), new_tokens, temperature
            )
            written |= dict(zip(places, texts, strict=True))
    return [written[place] for place in range(len(prompts))]


def continue_batch(
    name: str, model: PreTrainedModel, prompts_BT: Tensor, new_tokens: int, temperature: float
) -> list[Example]:
    """Continue prompts of one length, drawing from torch's own generator."""
    ends = list(TransformersModel(model).end_tokens)
    make: Any = GenerationConfig
    drawing = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    settings = make(
        max_new_tokens=new_tokens,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        use_cache=True,
        **(drawing or {"do_sample": False}),
    )
    ids = prompts_BT.to(model.device)
    try:
        with torch.no_grad(), plain_decoding(model):
            driven: Any = model
            found: Tensor = driven.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
            )
    except RuntimeError as error:
        raise BackendError(f"{name} could not write a text: {error}") from error
    prompt = prompts_BT.shape[1]
    return [Example(_cut_at_end(row, prompt, ends), prompt) for row in found.cpu()]


def _cut_at_end(ids: Tensor, prompt: int, ends: Sequence[int]) -> Tensor:
    """The text up to the first end token that was written, which belongs to it; what follows is padding."""
    for place in range(prompt, len(ids)):
        if int(ids[place]) in ends:
            return ids[: place + 1].clone()
    return ids.clone()


def _check_length(name: str, model: PreTrainedModel, prompts: Sequence[Tensor], new_tokens: int) -> None:
    positions = TransformersModel(model).positions
    longest = max(map(len, prompts), default=0)
    if positions is not None and longest + new_tokens > positions:
        raise BackendError(
            f"{name} would write up to {new_tokens} tokens after a prompt of {longest}, and has {positions} positions; "
            f"lower new_tokens or prompt_tokens"
        )
