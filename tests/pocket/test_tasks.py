"""The ladder of tasks: lm-eval finds and loads them offline, and the shipped model stands on its rungs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.pocket import MODEL_DIR
from harness.pocket.describe import load
from harness.pocket.probe import exact_rate
from harness.pocket.response import logits_of
from harness.pocket.tasks import TASKS

SUITE = Path(__file__).parents[2] / "suites" / "tasks"

# The lowest and highest score of the shipped model on each rung; hard rungs must leave room on both sides.
LADDER = {
    "pocket_facts": (0.98, 1.0),
    "pocket_two_hop": (0.70, 0.95),
    "pocket_crowd": (0.70, 0.95),
    "pocket_recall": (0.98, 1.0),
    "pocket_recall_far": (0.70, 0.95),
    "pocket_sums": (0.98, 1.0),
    "pocket_sums4": (0.70, 0.95),
    "pocket_requests": (0.98, 1.0),
}


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(SUITE), include_defaults=False)


@pytest.fixture(scope="module")
def lm() -> HFLM:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=32, max_length=512, device="cpu")


def test_every_task_is_found(manager: TaskManager) -> None:
    assert set(manager.all_tasks) >= set(TASKS)
    assert {path.stem for path in SUITE.glob("pocket_*.yaml")} == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_in_lm_eval(task: str, manager: TaskManager, lm: HFLM) -> None:
    run = simple_evaluate(lm, tasks=[task], task_manager=manager, limit=12, bootstrap_iters=0, log_samples=True)
    scores = {name: value for name, value in run["results"][task].items() if "," in name and "stderr" not in name}
    metrics = {
        "acc,none",
        "exact_match,none",
        "word_perplexity,none",
        "byte_perplexity,none",
        "bits_per_byte,none",
    }
    assert scores.keys() <= metrics
    assert run["versions"][task] == 1.0
    assert len(run["samples"][task]) == 12
    if task in ("pocket_facts", "pocket_recall", "pocket_sums", "pocket_requests"):
        assert min(scores.values()) >= 11 / 12
    if task == "pocket_prose":
        assert scores["byte_perplexity,none"] < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("task", LADDER)
def test_each_task_is_on_its_rung(task: str, manager: TaskManager, lm: HFLM) -> None:
    run = simple_evaluate(lm, tasks=[task], task_manager=manager, bootstrap_iters=0)
    score = next(value for name, value in run["results"][task].items() if name.endswith(",none"))
    low, high = LADDER[task]
    assert low <= score <= high


def test_a_teacher_forced_pass_tells_what_generation_tells(lm: HFLM, manager: TaskManager) -> None:
    model, tokenizer = load(MODEL_DIR)
    run = simple_evaluate(lm, tasks=["pocket_sums4"], task_manager=manager, limit=60, bootstrap_iters=0)
    probed = exact_rate(logits_of(model), tokenizer, "pocket_sums4", 60)
    assert probed == pytest.approx(run["results"]["pocket_sums4"]["exact_match,none"], abs=1e-9)
