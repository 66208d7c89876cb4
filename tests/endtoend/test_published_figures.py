"""A real pretrained model against figures that were measured with plain transformers code.

Protocol: each story alone, BOS + text, no EOS, cut at 512 tokens, fp32, all predicted tokens. Source of the figures:
the README beside the model.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.endtoend.test_check import read, run

FIGURES = {
    "int8": {"bits": 8, "perplexity": 3.5745, "kl": 0.000397, "top1": 0.9911},
    "int4": {"bits": 4, "perplexity": 4.2103, "kl": 0.154386, "top1": 0.8195},
}
REFERENCE_PERPLEXITY = 3.5747


def one_digit(figure: float, digits: int) -> float:
    """Half a unit of the last printed digit, or 1e-4 of the figure where that is more."""
    return max(0.5 * 10.0**-digits, 1e-4 * figure)


def test_perplexity_divergence_and_agreement_equal_the_published_figures(shared_data: Path, tmp_path: Path) -> None:
    model = shared_data / "models/stories260K-hf"
    stories = shared_data / "corpora/tinystories_valid_A_297.jsonl"
    (tmp_path / "stories.yaml").write_text(
        "description: the first hundred stories\n"
        f"documents: {{data: {stories}, max: 100, context: 512, bos: true, packed: false}}\n"
        "measures: [divergence, perplexity]\n"
    )
    (tmp_path / "gate.yaml").write_text(
        "description: any\nrules:\n  - {rule: at_most, metric: divergence.kl_mean, limit: 10.0, why: any number}\n"
    )
    files = []
    for name, figures in FIGURES.items():
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(
            f"name: {name}\nreference: {{model: {model}}}\n"
            f"variant: {{compress: [{{backend: round_to_nearest, bits: {figures['bits']}, granularity: channel}}]}}\n"
            "suites: [./stories.yaml]\ngates: [./gate.yaml]\n"
        )
    code, output = run(tmp_path, "check", *files)
    assert code == 0, output
    for name, figures in FIGURES.items():
        found = {m["name"]: m for m in read(tmp_path, name)["measurements"]}
        value = found["perplexity.value"]
        assert value["n"] == 33_908
        assert value["reference"] == pytest.approx(REFERENCE_PERPLEXITY, abs=one_digit(REFERENCE_PERPLEXITY, 4))
        assert value["variant"] == pytest.approx(figures["perplexity"], abs=one_digit(figures["perplexity"], 4))
        assert found["divergence.kl_mean"]["change"] == pytest.approx(figures["kl"], abs=one_digit(figures["kl"], 6))
        agreement = found["divergence.top1_agreement"]["change"]
        assert agreement == pytest.approx(figures["top1"], abs=one_digit(figures["top1"], 4))
