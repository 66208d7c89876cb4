"""A suite about the embedded model's world says so when another model is checked with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.plan import make_plan, notes_on_plan
from harness.pocket import MODEL_DIR

VARIANT = """\
name: v
reference: {{model: {model}}}
variant: {{compress: [{{backend: round_to_nearest, bits: 8, group_size: 32}}]}}
{more}suites: [{suite}]
gates: [{gate}]
"""


def noted(folder: Path, model: str, suite: str, gate: str = "ship", more: str = "") -> list[str]:
    path = folder / "variant.yaml"
    path.write_text(VARIANT.format(model=model, suite=suite, gate=gate, more=more))
    return [note.text for note in notes_on_plan(make_plan(path)) if note.topic == "another world"]


@pytest.mark.parametrize(
    ("suite", "gate", "about"),
    [
        ("core", "ship", "(documents pocket-heldout, 9 tasks such as pocket_facts)"),
        ("smoke", "smoke", "(documents pocket-heldout)"),
        ("standard", "ship", ""),
    ],
)
def test_suites_of_the_embedded_world(tmp_path: Path, suite: str, gate: str, about: str) -> None:
    (tmp_path / "mine").mkdir()
    found = noted(tmp_path, "./mine", suite, gate)
    assert len(found) == (1 if about else 0)
    if found:
        assert f"the suite {suite} is about the small world of the embedded model {about}, and" in found[0]
        assert "the reference is mine" in found[0]
    assert noted(tmp_path, "pocket", suite, gate) == []


def test_own_texts_with_a_bundled_task(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "t.txt").write_text("a text")
    own = "documents: {data: ./t.txt}\n"
    assert noted(tmp_path, "./mine", "texts", more=own) == []
    (found,) = noted(tmp_path, "./mine", "texts", more=f"{own}tasks: [pocket_sums]\n")
    assert "(1 task such as pocket_sums)" in found


def test_a_copy_of_the_embedded_model_is_of_its_world(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    shutil.copy(MODEL_DIR / "tokenizer.json", tmp_path / "mine")
    assert noted(tmp_path, "./mine", "core") == []
    (tmp_path / "mine" / "tokenizer.json").write_text("{}")
    assert len(noted(tmp_path, "./mine", "core")) == 1
