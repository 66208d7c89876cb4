"""Every architecture of the zoo: each compression step works on it, or is refused in one sentence of our own.

The quick part runs a few architectures that differ much, without the slower steps; all cells are the slow part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.modules.decoder_layers import decoder_blocks
from harness.modules.layer_pairs import block_numbers
from tests.bench.zoo import STEPS, Outcome, run_family
from tests.helpers.zoo import VISION, ZOO, make

PAGE = Path(__file__).parents[2] / ".github/ARCHITECTURES.md"
QUICK = ("gpt2", "falcon", "gpt_oss", "deepseek_v3", "mamba", "minimax", "gemma3_text", "llama4_text")
QUICK_VISION = ("qwen2_vl", "llama4")
QUICK_STEPS = ("identity", "rounding", "KV cache")
NO_CACHE = r"kv_cache: {} caches no keys and values; remove the step"
OWN_ATTENTION = (
    r"kv_cache: {0}Attention \(layer 0 of {0}ForCausalLM\) does not use transformers' attention interface, so its "
    r"cache cannot be simulated; remove the step, or use a release of transformers where it does"
)
NO_NORM = r"smoothquant: {}ForCausalLM has no norm into which a scale can be folded; remove the step"
UNCALLED = (
    r"activations: {0} never called: the model reads the weight and multiplies itself, so no input is rounded there; "
    r"leave it out with skip: \['lm_head', '{1}\.dt_proj'\]"
)
REFUSED: dict[tuple[str, str], str] = {
    ("olmo2", "SmoothQuant"): NO_NORM.format("Olmo2"),
    ("exaone4", "SmoothQuant"): NO_NORM.format("Exaone4"),
    ("minimax", "SmoothQuant"): NO_NORM.format("MiniMax"),
    ("rwkv", "SmoothQuant"): NO_NORM.format("Rwkv"),
    ("deepseek_v3", "KV cache"): (
        r"kv_cache: DeepseekV3Attention \(layer 0 of DeepseekV3ForCausalLM\) caches latents, 16 values of a token, "
        r"that it expands to 4 heads of 12 afterwards \(multi-head latent attention\); only cached keys and values can "
        r"be simulated; remove the step"
    ),
    ("gptj", "KV cache"): OWN_ATTENTION.format("GPTJ"),
    ("codegen", "KV cache"): OWN_ATTENTION.format("CodeGen"),
    ("bloom", "KV cache"): OWN_ATTENTION.format("Bloom"),
    ("mpt", "KV cache"): OWN_ATTENTION.format("Mpt"),
    ("falcon", "KV cache"): OWN_ATTENTION.format("Falcon"),
    ("mamba", "KV cache"): NO_CACHE.format("MambaForCausalLM"),
    ("mamba2", "KV cache"): NO_CACHE.format("Mamba2ForCausalLM"),
    ("falcon_mamba", "KV cache"): NO_CACHE.format("FalconMambaForCausalLM"),
    ("rwkv", "KV cache"): NO_CACHE.format("RwkvForCausalLM"),
    ("recurrent_gemma", "KV cache"): NO_CACHE.format("RecurrentGemmaForCausalLM"),
    ("mamba", "SmoothQuant"): UNCALLED.format(r"2 modules \(.+\) are", r"backbone\.layers\.\*\.mixer"),
    ("falcon_mamba", "SmoothQuant"): UNCALLED.format(r"2 modules \(.+\) are", r"backbone\.layers\.\*\.mixer"),
    ("jamba", "SmoothQuant"): UNCALLED.format(r"1 module \(.+\) is", r"model\.layers\.\*\.mamba"),
}
"""What is refused, and with which sentence; everything else works."""
LONGEST = 300
"""Characters of a sentence."""


def some(names: Iterable[str], quick: Sequence[str]) -> list[Any]:
    """All names; those that are not quick are slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def check(name: str, step: str, outcome: Outcome) -> None:
    assert not outcome.crashed, f"{name}, {step}: {outcome.crashed}"
    if expected := REFUSED.get((name, step)):
        assert re.fullmatch(expected, outcome.refused), f"{name}, {step}: {outcome.refused or 'it works now'}"
        assert len(outcome.refused) <= LONGEST
        return
    assert outcome.run is not None, f"{name}, {step}: {outcome.refused}"
    assert outcome.run["exit_code"] == 0, f"{name}, {step}: {[v['because'] for v in outcome.run['verdicts']]}"
    divergence = outcome.value("divergence.kl_mean")
    if step == "identity":
        assert divergence == 0, f"{name} is not the same model as itself"
    else:
        assert divergence > 0, f"{name}: {step} changes nothing"


@pytest.mark.parametrize("name", QUICK)
def test_architectures_that_differ_much_take_simple_steps(name: str, tmp_path: Path) -> None:
    for step, outcome in run_family(name, tmp_path, QUICK_STEPS).items():
        check(name, step, outcome)


def test_the_page_has_a_line_for_each_architecture_with_what_is_refused() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    sentences = dict(line.split(". ", 1) for line in lines if re.match(r"\d+\. ", line))
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == list(ZOO)
    for name, *cells in rows:
        for step, cell in zip(STEPS, cells, strict=True):
            expected = REFUSED.get((name, step))
            number = re.fullmatch(r"refused \((\d+)\)", cell)
            if expected is None:
                assert cell == "works", (name, step)
            else:
                assert number is not None, (name, step)
                assert re.fullmatch(expected, sentences[number[1]]), (name, step)


@pytest.mark.parametrize("name", some(VISION, QUICK_VISION))
def test_vision_language_models_are_checked_on_texts_and_say_what_took_no_part(name: str, tmp_path: Path) -> None:
    towers = 0.0
    for step, outcome in run_family(name, tmp_path, ("identity", "KV cache")).items():
        check(name, step, outcome)
        (note,) = outcome.notes("untouched")
        found = re.search(r"no text runs it: .*vis.*; (\d+\.\d)% of its parameters .*; equal on both sides", note)
        assert found, note
        towers = float(found[1])
    model = make(name)
    parts = re.compile(r"visual|vision|projector|connector")
    share = sum(p.numel() for path, p in model.named_parameters() if parts.search(path)) / model.num_parameters()
    assert towers == pytest.approx(100 * share, abs=0.06)


@pytest.mark.parametrize("name", VISION)
def test_decoder_layers_of_a_vision_language_model_are_those_of_its_language_model(name: str) -> None:
    path, blocks = decoder_blocks(make(name))
    assert re.search(r"language_model|text_model", path)
    assert len(blocks) == 2, "the tower has three"
    assert list(block_numbers(make(name))) == [f"{path}.0", f"{path}.1"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_architecture_takes_every_step_or_says_why_not(name: str, tmp_path: Path) -> None:
    found = run_family(name, tmp_path)
    assert list(found) == list(STEPS)
    for step, outcome in found.items():
        check(name, step, outcome)
