"""The suite ``texts`` for a model that reads fewer tokens than its generated texts have."""

from __future__ import annotations

from pathlib import Path

from harness.measures.generation import Generation
from harness.plan import load_suite
from harness.system.resources import bundled_file


def short_suite(positions: int | None) -> str:
    """The text of a suite file whose generated texts fit; empty where those of ``texts`` do.

    positions: how many tokens the model reads at most; None: not declared. Prompt and answer keep their proportion,
    and one token is left for BOS.
    """
    measures = load_suite("texts", Path()).measures
    generation = next(each for each in measures if isinstance(each, Generation))
    prompt, new = generation.prompt_tokens, generation.new_tokens
    if positions is None or positions > prompt + new:
        return ""
    short = max(1, positions * prompt // (prompt + new))
    given = f"prompt_tokens: {prompt}, new_tokens: {new}"
    fitting = f"prompt_tokens: {short}, new_tokens: {positions - short - 1}"
    text = bundled_file("suites", "texts").read_text(encoding="utf-8").replace(given, fitting)
    return f"# The suite texts, with prompts and answers that a model of {positions} tokens can read.\n{text}"
