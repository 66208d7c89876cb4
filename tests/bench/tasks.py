"""What lm-eval's requests cost in packed rows, beside lm-eval's own loop. A script, not a test: nothing is asserted.

    python tests/bench/tasks.py --dtype float32
    python tests/bench/tasks.py --dtype bfloat16 --items 40 choices_5 texts

One process, one thread. Both ways answer the same requests of a random Llama of 60 million parameters, group by group
in turn, so that other work on the machine falls on both alike; ratios are of processor time, tokenization included.
Columns: seconds of lm-eval's loop and of packed rows, their ratio, the largest difference of a log-likelihood, and how
many answers (the most likely choice, the text) are others.

    choices_5   four choices of 5 tokens after 150 tokens
    choices_20  four choices of 20 tokens after 150 tokens
    examples    the same after five examples of 100 tokens that all items share
    texts       texts of 1 to 256 tokens after 100 tokens, 16 at a time
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.models.language_model import TransformersModel
from harness.probes._scorer import Scorer
from harness.scoring.guards import silence

VOCABULARY = 32_000
END_RANGE = 500
"""Number of tokens that end a text: one in 64 of those that the model writes."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: w2 … w31999."""
    vocabulary = {"<unk>": 0, "</s>": 1} | {f"w{number}": number for number in range(2, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", pad_token="</s>")  # noqa: S106


def make_model(dtype: torch.dtype) -> Any:
    """A random Llama of 60 million parameters, with weights so large that its greedy texts do not repeat themselves."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, num_hidden_layers=8, intermediate_size=1536,
        num_attention_heads=8, initializer_range=0.06, bos_token_id=None, eos_token_id=list(range(1, END_RANGE)),
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(dtype)


def words(rng: random.Random, count: int) -> str:
    """A text of so many tokens."""
    return " ".join(f"w{rng.randrange(END_RANGE, VOCABULARY)}" for _ in range(count))


def make_choices(items: int, tokens: int, examples: str = "") -> list[Instance]:
    """Four choices after contexts of 130 to 170 tokens."""
    rng = random.Random(tokens)
    made = []
    for item in range(items):
        context = f"{examples} {words(rng, rng.randint(130, 170))}".strip()
        for choice in range(4):
            arguments = (context, " " + words(rng, tokens))
            made.append(
                Instance(request_type="loglikelihood", doc={}, arguments=arguments, idx=choice, metadata=("b", item, 1))
            )
    return made


def make_texts(items: int) -> list[Instance]:
    """Prompts of 80 to 120 tokens, continued for up to 256 tokens, which is lm-eval's default."""
    rng = random.Random(0)
    settings = {"until": [], "max_gen_toks": 256, "do_sample": False}
    return [
        Instance(
            request_type="generate_until", doc={}, arguments=(words(rng, rng.randint(80, 120)), settings), idx=0,
            metadata=("b", item, 1),
        )
        for item in range(items)
    ]  # fmt: skip


@dataclass
class Totals:
    """What both ways took and gave."""

    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    difference: float = 0.0
    changed: int = 0


CASES: dict[str, Callable[[int], list[Instance]]] = {
    "choices_5": lambda items: make_choices(items, 5),
    "choices_20": lambda items: make_choices(items, 20),
    "examples": lambda items: make_choices(items, 5, words(random.Random(9), 500)),
    "texts": make_texts,
}


def measure(scorer: Scorer, requests: list[Instance], groups: int) -> Totals:
    """Answer the requests in both ways, a group of them at a time."""
    totals = Totals()
    size = -(-len(requests) // groups)
    for first in range(0, len(requests), size):
        group = requests[first : first + size]
        answers = []
        for way, plain in enumerate(("lm-eval's loop", "")):
            scorer.begin_task(plain)
            start = time.process_time()
            with silence(), torch.no_grad():
                answers.append(getattr(scorer, group[0].request_type)(group))
            totals.seconds[way] += time.process_time() - start
            assert bool(scorer.plain) == bool(plain), scorer.plain
        compare(totals, *answers)
    return totals


def compare(totals: Totals, plain: list[Any], packed: list[Any]) -> None:
    """Add the differences of two lists of answers."""
    if isinstance(plain[0], str):
        totals.changed += sum(one != other for one, other in zip(plain, packed, strict=True))
        return
    one, other = (np.array([each[0] for each in answers]).reshape(-1, 4) for answers in (plain, packed))
    totals.difference = max(totals.difference, float(np.abs(one - other).max()))
    totals.changed += int((one.argmax(1) != other.argmax(1)).sum())


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="case", help=", ".join(CASES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--items", type=int, default=96)
    parser.add_argument("--groups", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = make_model(getattr(torch, options.dtype))
    identity = SimpleNamespace(cache=None, modules=())
    loaded: Any = SimpleNamespace(
        name="bench",
        language_model=TransformersModel(model),
        model=model,
        tokenizer=make_tokenizer(),
        identity=identity,
    )
    scorer = Scorer(loaded, 16, bos=False)
    scorer.share_context_of(scorer)
    print(f"{'case':12}{'lm-eval s':>11}{'packed s':>10}{'ratio':>7}{'difference':>12}{'changed':>9}")
    for case in options.cases:
        found = measure(scorer, CASES[case](options.items), options.groups)
        plain, packed = found.seconds
        print(
            f"{case:12}{plain:11.2f}{packed:10.2f}{plain / packed:7.2f}{found.difference:12.1e}{found.changed:9}",
            flush=True,
        )


if __name__ == "__main__":
    main()
