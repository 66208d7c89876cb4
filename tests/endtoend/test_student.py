"""A student with a tokenizer of its own: what needs common tokens cannot be judged, everything else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from harness.pocket import world
from harness.system.resources import bundled_file
from tests.endtoend.test_check import read, run
from tests.helpers.students import byte_tokenizer


def save_student(folder: Path, vocabulary: int = 400) -> None:
    """Untrained, half as deep as the embedded model, with a tokenizer trained on its texts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    texts = [document.text for document in world.documents("train", 40, 0)]
    tokenizer = byte_tokenizer(vocabulary, texts=texts)
    tokenizer.backend_tokenizer.post_processor = bos_first()
    tokenizer.save_pretrained(folder)


def bos_first() -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])


def small_suite() -> dict[str, Any]:
    """The suite core on few documents, items and greedy texts."""
    content: dict[str, Any] = yaml.safe_load(bundled_file("suites", "core").read_text())
    content["documents"] |= {"max": 12, "context": 128}
    kept: dict[str, Any] = {
        "tasks": {"tasks": ["pocket_requests", "pocket_sums"], "limit": 6, "items": None},
        "latency": {"repeats": 6},
        "generation": {"max": 6, "prompt_tokens": 16, "new_tokens": 12},
    }
    measures = []
    for entry in content["measures"]:
        named = {"measure": entry} if isinstance(entry, str) else entry
        measures.append(named | kept.get(named["measure"], {}))
    content["measures"] = measures
    return content


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    folder = tmp_path_factory.mktemp("student")
    save_student(folder / "student")
    (folder / "suite.yaml").write_text(yaml.safe_dump(small_suite()))
    (folder / "distilled.yaml").write_text(
        "name: distilled\nreference: {model: pocket}\nvariant: {model: ./student}\n"
        "suites: [./suite.yaml]\ngates: [ship]\n"
    )
    return folder, *run(folder, "check", folder / "distilled.yaml")


def test_a_gate_that_needs_common_tokens_says_error_and_which_gate_suits(checked: tuple[Path, int, str]) -> None:
    folder, code, output = checked
    assert code == 2, output
    content = read(folder, "distilled")
    by_metric = {verdict["metric"]: verdict for verdict in content["verdicts"]}
    for metric in ("perplexity.ratio", "divergence.kl_mean", "logits.max_abs_diff", "calibration.brier"):
        assert by_metric[metric]["status"] == "error", metric
        assert "other token ids under the variant's tokenizer" in by_metric[metric]["because"]
        assert "gate student" in by_metric[metric]["because"]
    assert "gate student" in output
    measured = {entry["name"] for entry in content["measurements"]}
    assert {"perplexity.bits_per_byte", "generation.similarity", "generation.common_prefix"} <= measured
    assert "latency.ratio" in measured
    assert {"tasks.pocket_requests.accuracy", "tasks.pocket_sums.exact_match"} <= measured
    skipped = {entry["measure"] for entry in content["skipped"]}
    assert {"perplexity.value", "divergence.kl_mean", "layers.worst", "generation.first_divergence"} <= skipped
    assert not measured & skipped
    assert any(note["topic"] == "tokenizer" for note in content["notes"])


def test_the_gate_for_students_gives_a_real_verdict(checked: tuple[Path, int, str]) -> None:
    folder, _, _ = checked
    code, output = run(folder, "judge", "runs/distilled", "--gate", "student")
    assert code == 1, output
    assert "perplexity.bits_per_byte" in output
    assert "Could not be judged" not in output


def test_bits_per_byte_are_of_the_same_bytes(checked: tuple[Path, int, str]) -> None:
    folder, _, _ = checked
    found = {entry["name"]: entry for entry in read(folder, "distilled")["measurements"]}
    bits = found["perplexity.bits_per_byte"]
    assert 0.2 < bits["reference"] < 2.0
    assert bits["variant"] > bits["reference"] + 1  # untrained
    assert bits["low"] < bits["change"] < bits["high"]
    assert bits["clusters"] == 12
    assert "the same" in bits["method"]


def test_the_report_shows_texts_side_by_side(checked: tuple[Path, int, str]) -> None:
    folder, _, _ = checked
    report = (folder / "runs/distilled/report.html").read_text(encoding="utf-8")
    section = report.partition('<section id="generation"')[2].partition("</section>")[0]
    assert section.count('<article class="pairing">') == 6
    assert "<mark>" in section
    assert "Bits per byte" in report
