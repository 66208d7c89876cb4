"""The first hour with one's own model: init writes a file, check gives a verdict, and no page was read between them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import app
from tests.helpers.checked_folders import pack_gptq
from tests.helpers.tiny_models import family, save

NOT_GATED = "no tasks are gated here: the suite texts measures none (without: [tasks]), so 3 rules of the gate ship"


def typed(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None, done.output
    return done.output


def checked(folder: Path, file: Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["check", str(file), "--out", str(folder / "runs")], standalone_mode=False)
    assert done.exception is None, done.output
    return int(done.return_value or 0), done.output


def verdict_of(folder: Path) -> dict[str, object]:
    (path,) = (folder / "runs").glob("*/run.json")
    content: dict[str, object] = json.loads(path.read_text())
    return content


@pytest.mark.slow
def test_a_small_trained_model_with_its_texts(tmp_path: Path, shared_data: Path) -> None:
    """Four bits destroy a model of a quarter of a million parameters, and the reason is named."""
    model = shared_data / "models" / "stories260K-hf"
    texts = shared_data / "corpora" / "tinystories_valid_A_297.jsonl"
    file = tmp_path / "variant.yaml"
    said = typed("init", file, "--reference", model, "--documents", texts)
    assert "reference: float32, reads 512 tokens" in said
    assert "texts: 297 documents in 'text'" in said
    code, output = checked(tmp_path, file)
    assert code == 1
    assert "perplexity ratio" in output
    assert NOT_GATED in output
    assert verdict_of(tmp_path)["failure"] == "quality"


def test_a_random_model_is_not_judged_until_the_file_says_that_it_is_meant(tmp_path: Path) -> None:
    """What init writes runs at once; a model that knows nothing is an error of the reference, with what to do."""
    made = family("llama")
    made.config.max_position_embeddings = 256  # room for the generated texts
    model = save(made, tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n\n".join(f"word{n} says that {n} foxes live here." for n in range(72)))
    file = tmp_path / "variant.yaml"
    typed("init", file, "--reference", model, "--documents", tmp_path / "texts.txt")
    file.write_text(file.read_text().replace("group_size: 128", "group_size: 16").replace("bits: 4", "bits: 8"))
    code, output = checked(tmp_path, file)
    assert code == 2
    assert "weak_reference" in output
    assert NOT_GATED in output
    file.write_text(f"{file.read_text()}\nweak_reference: random weights, a test\n")
    code, output = checked(tmp_path, file)
    assert code in (0, 1, 3), output
    assert NOT_GATED in output


def test_a_model_that_reads_few_tokens_gets_a_suite_that_fits(tmp_path: Path) -> None:
    """64 positions and 32 inputs: neither the generated texts of the suite texts nor groups of 128 would fit."""
    made = family("llama")
    assert made.config.max_position_embeddings == 64
    model = save(made, tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n\n".join(f"word{n} says that {n} foxes live here." for n in range(72)))
    file = tmp_path / "variant.yaml"
    said = typed("init", file, "--reference", model, "--documents", tmp_path / "texts.txt")
    assert "variant-suite.yaml: the suite texts with generated texts that fit 64 tokens" in said
    assert "group_size: 32}" in file.read_text()
    assert "suites: [./variant-suite.yaml]" in file.read_text()
    file.write_text(f"{file.read_text()}\nweak_reference: random weights, a test\n")
    code, output = checked(tmp_path, file)
    assert code in (0, 1, 3), output
    found = verdict_of(tmp_path)["measurements"]
    assert "generation.stopped" in {each["name"] for each in found}  # type: ignore[attr-defined]


def test_a_quantized_folder_is_checked_as_it_stands(tmp_path: Path) -> None:
    """Four-bit codes as GPTQ packs them, without any further setting."""
    made = family("llama")
    made.config.max_position_embeddings = 256
    model, variant = save(made, tmp_path / "model"), save(made, tmp_path / "packed")
    pack_gptq(variant)
    (tmp_path / "texts.txt").write_text("\n\n".join(f"word{n} says that {n} foxes live here." for n in range(72)))
    file = tmp_path / "variant.yaml"
    said = typed("init", file, "--reference", model, "--variant", variant, "--documents", tmp_path / "texts.txt")
    assert "reference: float32, reads 256 tokens" in said
    file.write_text(f"{file.read_text()}\nweak_reference: random weights, a test\n")
    code, output = checked(tmp_path, file)
    assert code in (0, 1, 3), output
    bits = next(each for each in verdict_of(tmp_path)["measurements"] if each["name"] == "memory.weight_bytes")  # type: ignore[attr-defined]
    assert bits["variant"] < bits["reference"]
