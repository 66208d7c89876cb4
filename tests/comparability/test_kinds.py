"""Kinds of published failures that two folders show before any forward pass: two variations of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.folders import CHATML, SETTINGS, TOKENIZER, Pair, edit

CONFIG, GENERATION = "config.json", "generation_config.json"
NFKC, STRIP = {"type": "NFKC"}, {"type": "Strip", "strip_left": True, "strip_right": True}
KINDS: dict[str, tuple[tuple[str, str, dict[str, Any]], ...]] = {
    "chat template": (
        ("chat_template", SETTINGS, {"chat_template": CHATML.replace("<|im_start|>", "<|start|>")}),
        ("chat_template", SETTINGS, {"chat_template": f"{{{{ bos_token }}}}{CHATML}"}),
    ),
    "stop tokens": (
        ("stop_tokens", GENERATION, {"eos_token_id": [1, 40]}),
        ("stop_tokens", SETTINGS, {"eos_token": "<s>"}),
    ),
    "sampling defaults": (
        ("generation_config", GENERATION, {"do_sample": True, "temperature": 1.7}),
        ("generation_config", GENERATION, {"no_repeat_ngram_size": 2}),
    ),
    "configuration beyond the context": (
        ("configuration", CONFIG, {"max_position_embeddings": 256}),
        ("configuration", CONFIG, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0}}),
    ),
    "unknown configuration key": (
        ("configuration", CONFIG, {"embedding_multiplier": 12.0}),
        ("configuration", CONFIG, {"attn_logit_softcapping": 30.0}),
    ),
    "tokenizer pipeline": (
        ("normalizer", TOKENIZER, {"normalizer": NFKC}),
        ("normalizer", TOKENIZER, {"normalizer": STRIP}),
    ),
}
"""Kind: the part that finds it, the file, and what is changed of it."""


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, number) for kind, variations in KINDS.items() for number in range(len(variations))]
)
def test_variations_of_a_kind_are_found(tmp_path: Path, kind: str, number: int) -> None:
    part, name, changes = KINDS[kind][number]
    pair = Pair(tmp_path)
    for folder in (pair.reference, pair.variant):
        edit(folder / SETTINGS, chat_template=CHATML)
    assert pair.compare().comparable == "yes"
    edit(pair.variant / name, **changes)
    found = [each for each in pair.compare().differences if each.part == part and each.severity != "informative"]
    assert found
    assert all(each.meaning for each in found)
    assert pair.compare().comparable in ("no", "partly")
