"""The benchmark scripts still run, on next to nothing; what they measure is looked at elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.matrix_page import read_data

ROOT = Path(__file__).parents[2]


def run(script: str, *options: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/bench" / script), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_shared_pass_is_measured() -> None:
    options = ["--dtype", "float32", "--kernel", "eager", "naive", "--documents", "2", "--length", "64"]
    lines = run("shared_pass.py", *options).splitlines()
    assert [line for line in lines if "eager" in line]
    assert [line for line in lines if "naive" in line]


@pytest.mark.slow
def test_making_a_variant_is_measured_beside_the_bare_work() -> None:
    lines = run("making.py", "--hidden", "128", "--layers", "2", "--repeats", "2").splitlines()
    stages = ["bare work", "load", "check of the grid", "hash", "look for NaN", "make", "over the bare work", "peak"]
    assert [line[:20].strip() for line in lines] == stages
    assert all(float(line[20:].split()[0]) >= 0 for line in lines)


@pytest.mark.slow
def test_tasks_are_measured_beside_the_loop_of_lm_eval() -> None:
    head, *lines = run("tasks.py", "--items", "2", "choices_5", "texts").splitlines()
    assert head.split() == ["case", "lm-eval", "s", "packed", "s", "ratio", "difference", "changed"]
    assert [line.split()[0] for line in lines] == ["choices_5", "texts"]
    assert all(float(line.split()[4]) < 1e-4 and line.split()[5] == "0" for line in lines)


@pytest.mark.slow
def test_the_matrix_is_made_and_goes_on_where_it_was(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    options = ["--out", str(page), "--work", str(tmp_path / "work"), "--models", "llama", "gpt2", "pocket"]
    options += ["--only", "pytorch_dynamic_int8: INT8 tensor", "--judged", "2"]
    said = run("matrix.py", *options)
    assert "pocket: pytorch_dynamic_int8: INT8 tensor, INT8 inputs per tensor: KL" in said
    text = page.read_text(encoding="utf-8")
    assert re.search(r"\| pytorch_dynamic_int8 \| INT8 tensor, .* \| real \| \d\.\d{5} \| all but gpt2 \|", text)
    made = read_data(tmp_path / "data")
    (pair,) = made.comparisons
    assert (pair.model, pair.simulation) == ("pocket", "ours: INT8 tensor, all codes, INT7 inputs per tensor")
    (refused,) = [each for each in made.results if each.not_run]
    assert refused.model == "gpt2"
    assert "c_attn: is a Conv1D" in refused.not_run
    assert run("matrix.py", *options) == ""
    assert page.read_text(encoding="utf-8") == text


@pytest.mark.slow
def test_the_page_of_methods_is_made(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    run("methods.py", "--out", str(page), "--max", "3", "--only", "INT8 channel")
    text = page.read_text(encoding="utf-8")
    assert "| INT8 channel | 8.06 |" in text
    assert "could not run" not in text


@pytest.mark.slow
def test_the_pages_of_the_same_model_and_of_items_needed_are_made(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    run("same_model.py", "--out", str(page), "--runs", "2", "--documents", "20", "--no-tasks")
    text = page.read_text(encoding="utf-8")
    assert "**2 pass**" in text
    assert "| divergence.kl_mean | " in text
    run("documents.py", "--out", str(page), "--runs", "40")
    assert "| 1 | 5 | 0.7 | " in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_section_of_distillation_is_made_and_other_sections_stay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Training\n\n## Distillation\n\nold\n\n## Other\n\nstays\n")
    options = ["--out", str(page), "--steps", "2", "--judged", "3", "--only"]
    run("distillation.py", *options, "few: hard labels", "few: logit")
    text = page.read_text(encoding="utf-8")
    assert re.search(r"\| logit \| \d\.\d{4} \| [+-]\d\.\d{4} \[", text)
    assert "| logit, then GPTQ INT4 group 32 |" in text
    assert "old" not in text
    assert text.endswith("## Other\n\nstays\n")
    # Without rows, the section is written from what is kept.
    assert run("distillation.py", *options) == ""
    assert page.read_text(encoding="utf-8") == text


@pytest.mark.slow
def test_the_section_on_qlora_is_made_and_leaves_the_others(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    page = tmp_path / "page.md"
    page.write_text("# Training\n\nfirst\n\n## QLoRA, tuned for one task\n\nsuperseded\n\n## Another\n\nlast\n")
    run("qlora.py", "--page", str(page), "--steps", "2", "--limit", "8")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Training\n\nfirst\n\n## QLoRA, tuned for one task\n")
    assert text.endswith("\n## Another\n\nlast\n")
    assert "superseded" not in text
    assert re.search(r"\| pocket_two_hop \| .* % → .* % \| .* points \|", text)
    assert re.search(r"\| QLoRA, adapter beside it \| 4\.127 \| 2,532,528 \| \d+ \|", text)
