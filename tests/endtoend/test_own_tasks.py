"""Task files of one's own: init names them, check scores them, and the files are part of what a run is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.endtoend.test_first_hour import checked, typed, verdict_of
from tests.helpers.tiny_models import family, save
from tests.planning.test_task_paths import TASK, write_task


def scored(folder: Path, task: Path) -> dict[str, Any]:
    """The tasks of a run that init and check make of a random model and a task file: its measurements, by name."""
    made = family("llama")
    made.config.max_position_embeddings = 256  # room for the generated texts
    model = save(made, folder / "model")
    (folder / "texts.txt").write_text("\n\n".join(f"word{n} says that {n} foxes live here." for n in range(4)))
    file = folder / "variant.yaml"
    typed("init", file, "--reference", model, "--documents", folder / "texts.txt", "--tasks", task)
    text = (
        file.read_text().replace("group_size: 128", "group_size: 16").replace("suites: [texts]", "suites: [./s.yaml]")
    )
    file.write_text(f"{text}\nweak_reference: random weights, a test\n")
    (folder / "s.yaml").write_text(
        "documents: {data: own, context: 64}\nwithout: [tasks]\nmeasures: [logits, divergence, perplexity]\n"
    )
    code, output = checked(folder, file)
    assert code in (0, 1, 3), output
    found: Any = verdict_of(folder)["measurements"]
    return {each["name"]: each for each in found if each["name"].startswith("tasks.")}


def test_a_task_file_by_its_path(tmp_path: Path) -> None:
    """The data file stands beside the task file, in another folder than the variant file, and so does a function."""
    text = TASK.replace("doc_to_target: label", "doc_to_target: !function own.gold")
    write_task(tmp_path, text)
    (tmp_path / "tasks" / "own.py").write_text("def gold(doc):\n    return doc['label']\n")
    (tmp_path / "tasks" / "stranger.yaml").write_text("task: mine\n")  # another file that declares the name
    measured = scored(tmp_path, tmp_path / "tasks" / "mine.yaml")
    assert measured["tasks.mine.accuracy"]["clusters"] == 40
    (run,) = (tmp_path / "runs").glob("*/run.json")
    asked = json.dumps(json.loads(run.read_text())["asked"])
    assert "tasks/mine.yaml" in asked


@pytest.mark.slow
def test_questions_of_a_public_set(tmp_path: Path, shared_data: Path) -> None:
    items = shared_data / "tasks" / "arc_easy_500.jsonl"
    text = TASK.replace("./items.jsonl", json.dumps(str(items)))
    task = write_task(tmp_path, text)
    measured = scored(tmp_path, task)
    assert measured["tasks.mine.accuracy"]["clusters"] == 500
