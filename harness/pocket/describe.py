"""Measure a model folder and write its card and manifest: `python -m harness.pocket.describe DIR`.

Every number on the card is measured here; none is entered by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from harness.pocket.probe import exact_rates
from harness.pocket.response import RECIPES, Response, baseline, encode, logits_of, measure, token_nlls
from harness.pocket.world import documents

FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
)
SHORT = {
    "pocket_facts": "facts",
    "pocket_two_hop": "two hop",
    "pocket_crowd": "crowd",
    "pocket_recall": "recall",
    "pocket_recall_far": "recall far",
    "pocket_sums": "sums",
    "pocket_sums4": "sums4",
    "pocket_requests": "requests",
}


@dataclass(frozen=True)
class KindFigures:
    """Held-out results for one kind of document: tokens, and nats of the model and of the generator."""

    kind: str
    documents: int
    tokens: int
    nll: float
    entropy: float


def measure_by_kind(model: LlamaForCausalLM, tokenizer: Tokenizer, count: int) -> list[KindFigures]:
    """Negative log-likelihood and generator entropy by kind of document; the last row is all of them."""
    pages = documents("heldout", count)
    ids = encode(tokenizer, pages)
    rows: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
    for page, tokens, nll in zip(pages, ids, token_nlls(model, ids), strict=True):
        for kind in (page.kind, "all"):
            rows[kind].append((tokens.shape[1] - 1, nll, page.entropy))
    return [
        KindFigures(kind, len(found), *(sum(column) for column in zip(*found, strict=True)))
        for kind, found in sorted(rows.items(), key=lambda row: (row[0] == "all", row[0]))
    ]


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def kinds_table(figures: list[KindFigures]) -> str:
    """Perplexity by kind of document, compared with the generator's."""
    rows = [
        [
            row.kind,
            str(row.documents),
            f"{row.tokens:,}",
            f"{math.exp(row.nll / row.tokens):.3f}",
            f"{math.exp(row.entropy / row.tokens):.3f}",
            f"{row.nll / row.tokens:.4f}",
            f"{row.entropy / row.tokens:.4f}",
        ]
        for row in figures
    ]
    header = [
        "kind",
        "documents",
        "tokens",
        "perplexity",
        "generator's",
        "nats/token",
        "generator's, at most",
    ]
    return _table(header, rows)


def response_table(reference: dict[str, float], responses: list[Response]) -> str:
    """A row for each compression recipe: change of NLL, perplexity, KL, agreement, task scores."""
    header = ["variant", "Δ nats/token", "95 % interval", "perplexity", "KL", "top-1 agreement"]
    header += SHORT.values()
    rows = [["reference", "", "", "", "", "", *(f"{reference[task]:.3f}" for task in SHORT)]]
    for row in responses:
        change = row.change
        rows.append(
            [
                row.name,
                f"{change.nll_delta:+.5f}",
                f"[{change.low:+.5f}, {change.high:+.5f}]",
                f"{change.perplexity:.4g}",
                f"{change.kl:.5f}",
                f"{change.agreement:.4f}",
                *(f"{row.tasks[task]:.3f}" for task in SHORT),
            ]
        )
    return _table(header, rows)


CARD = """---
license: apache-2.0
library_name: transformers
---

# pocket

A language model of {parameters:,} parameters in a world of its own, made to be compressed: it shows on
any laptop, in seconds and without a network, what quantization does to a model. `LlamaForCausalLM` with
grouped-query attention ({heads} query heads, {kv_heads} key-value heads of {head_size}), hidden size
{hidden}, {layers} layers, feed-forward size {intermediate}, tied embeddings, context {context}, its own
BPE tokenizer of {vocabulary:,} entries; stored as bfloat16.

It knows nothing about the real world, and no text by anybody else was used. Do not build on what it says.

## Data

Written by `harness.pocket.world` from seeds: stories about people with facts (one fact or two are asked
for), tales of who went where with what, code words to recall after prose, sums, requests that are
answered or declined, lists to copy, plain prose. Words are drawn with Zipf-like frequencies. Every
passage belongs by a hash of its text to one of training, calibration, held-out and tasks; one in eight
pairs of verb and thing, and one in eight sums, never occur in training or calibration. Every document
starts with `<s>` and ends with `</s>`.

## Training

{training}
Measuring for this card took {minutes:.0f}.

Muon on the matrices of the layers, AdamW on embedding and gains, bfloat16 autocast, 4,096 tokens a step,
answer tokens weighted four times. An opening curriculum of lists to copy and tiny stories, then the main
mixture at 256 tokens, then one of longer documents at 512. At the end the weights are rounded to bfloat16;
every figure here is of the rounded model.

`python -m harness.pocket.train --out DIR` makes it again, weights and card.

## Outliers

After training, outliers were planted by powers of two: the gains of all layer norms × {norm_factor:g} in
channels {channels}, with the consuming columns divided by as much, and one RoPE pair of rows of each key
head × {key_factor:g}, with the query rows divided by as much. In float32 and bfloat16 no bit of any logit
changes; float16 is too narrow.

## Figures

On {heldout} held-out documents. The generator's entropy is that of its draws, an upper bound of what the
text needs.

{kinds}

Greedy and exact, every entry of the vocabulary competing, {items} items a task (lm-eval's multiple-choice
accuracy is at least as high):

{response}

All variants are round-to-nearest, symmetric, simulated in float32, on the linear layers inside the
decoder; the change is paired and its interval clustered by document. Activations have one dynamic scale
for each tensor.
"""


def load(folder: Path) -> tuple[LlamaForCausalLM, Tokenizer]:
    """The model in float32 and its tokenizer."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def write_card(folder: Path, heldout: int = 400, items: int = 200) -> None:
    """Measure the model in `folder`, then write README.md and manifest.json there."""
    started = time.monotonic()
    model, tokenizer = load(folder)
    record = json.loads((folder / "training.json").read_text())
    config = model.config
    reference = exact_rates(logits_of(model), tokenizer, items)
    base = baseline(model, tokenizer, heldout)
    responses = []
    for recipe in RECIPES:
        responses.append(measure(base, recipe, items))
        print(f"{recipe.name}: {responses[-1].change.nll_delta:+.5f} {time.monotonic() - started:.0f} s", flush=True)
    plant = record["plant"]
    card = CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=config.head_dim,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        intermediate=config.intermediate_size,
        context=config.max_position_embeddings,
        vocabulary=config.vocab_size,
        training=record["summary"],
        minutes=(time.monotonic() - started) / 60,
        norm_factor=plant["norm_factor"],
        key_factor=plant["key_factor"],
        channels=", ".join(str(channel) for channel in plant["channels"]),
        heldout=heldout,
        items=items,
        kinds=kinds_table(measure_by_kind(model, tokenizer, heldout)),
        response=response_table(reference, responses),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_manifest(folder)


def write_manifest(folder: Path) -> None:
    """Write manifest.json: the SHA-256 of every file of the model."""
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / "manifest.json").write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Describe the model in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_card(parser.parse_args().folder)


if __name__ == "__main__":
    main()
