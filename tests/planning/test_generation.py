"""Greedy texts in a plan: where prompts come from, how many there are, and what they cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import PlanError
from harness.forecast.cost import amount
from harness.forecast.measured import list_measured
from harness.measures.generation import Generation
from harness.plan import load_suite
from harness.planning.specs import SuiteSpec


def suite(folder: Path, documents: str, measure: str) -> SuiteSpec:
    (folder / "suite.yaml").write_text(f"{documents}measures:\n  - {measure}\n")
    return load_suite("./suite.yaml", folder)


def test_prompts_are_documents_or_lines_of_a_file(tmp_path: Path) -> None:
    documents = "documents: {data: pocket-heldout, max: 30}\n"
    assert Generation().sample_size(30) == 30
    assert Generation(max=7).sample_size(30) == 7
    assert Generation().sample_size(None) is None
    of_documents = suite(tmp_path, documents, "{measure: generation, max: 20}")
    found = {each.metric.name: (each.documents, each.metric.units) for each in list_measured([of_documents])}
    assert found["generation.exact_match"] == (20, "prompts")
    assert amount((of_documents,)).written == 20 * (32 + 64)
    (tmp_path / "asked.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    of_file = suite(tmp_path, "", "{measure: generation, prompts: asked.jsonl}")
    assert of_file.documents is None
    counted = [each for each in list_measured([of_file]) if each.metric.name.startswith("generation.")]
    assert {each.documents for each in counted} == {2}
    (probe,) = (each for each in of_file.probes if each.kind == "generations")
    assert probe.settings()["prompts"] == str(tmp_path / "asked.jsonl")


def test_without_documents_prompts_must_come_from_a_file_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no documents, expected documents, which generation needs"):
        suite(tmp_path, "", "generation")
    with pytest.raises(PlanError, match="not found"):
        suite(tmp_path, "", "{measure: generation, prompts: gone.jsonl}")
