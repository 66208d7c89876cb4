"""Suites made for the user's own texts and tasks take over those that the variant file names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import PlanError
from harness.plan import load_suite, make_plan, notes_on_plan
from harness.planning.specs import Plan

VARIANT = """\
name: v
reference: {model: pocket}
variant: {compress: [{backend: round_to_nearest, bits: 8, group_size: 32}]}
documents: {data: ./texts.jsonl, text_field: story, context: 256}
suites: [texts]
gates: [ship]
"""


def planned(folder: Path, variant: str = VARIANT) -> Plan:
    rows = [json.dumps({"story": f"Once upon a time there were {n} foxes in a wood."}) for n in range(80)]
    (folder / "texts.jsonl").write_text("\n".join(rows))
    (folder / "variant.yaml").write_text(variant)
    return make_plan(folder / "variant.yaml")


def refusals(folder: Path, variant: str) -> list[str]:
    with pytest.raises(PlanError) as caught:
        planned(folder, variant)
    return [str(problem) for problem in caught.value.problems]


def test_the_suite_texts_measures_on_the_texts_of_the_variant_file(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    documents = plan.suites[0].documents
    assert documents is not None
    assert documents.data == str(tmp_path / "texts.jsonl")
    assert (documents.text_field, documents.context, documents.bos) == ("story", 256, "auto")
    assert "no tasks are gated here" in notes_on_plan(plan)[0].text


def test_tasks_of_the_variant_file_are_scored_and_gated(tmp_path: Path) -> None:
    plan = planned(tmp_path, VARIANT.replace("suites:", "tasks: [pocket_sums]\nsuites:"))
    tasks = next(measure for measure in plan.suites[0].measures if measure.kind == "tasks")
    assert [size.name for size in tasks.task_sizes()] == ["pocket_sums"]
    assert tasks.settings()["bos"] == "auto"
    assert plan.suites[0].without == ()
    assert notes_on_plan(plan) == ()
    assert not any(spec.left_out for spec in plan.gates[0].rules)
    limited = planned(tmp_path, VARIANT.replace("suites:", "tasks: {tasks: [pocket_sums], limit: 20}\nsuites:"))
    assert limited.suites[0].measures[-2].settings()["limit"] == 20


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("documents: {data: ./texts.jsonl, text_field: story, context: 256}\n", "",
         "suites: found the suite texts, which measures on your own texts, and no documents"),
        ("suites: [texts]", "suites: [smoke]", "documents: found documents, but smoke has its own"),
        ("suites: [texts]", "tasks: [pocket_sums]\nsuites: [core]",
         "tasks: found tasks, but core takes none from here"),
        ("./texts.jsonl", "./text.jsonl", "variant.yaml:4: documents.data: found './text.jsonl': no such file"),
        ("text_field", "textfield", "variant.yaml:4: documents.textfield: found the unknown key 'textfield'"),
        ("suites:", "tasks: [pocket_sums, 7]\nsuites:", "variant.yaml:5: tasks.tasks[1]: found 7 (a number)"),
        ("suites:", "tasks: pocket_sums\nsuites:", "variant.yaml:5: tasks: found"),
        ("documents: {", "documents: {dat: 1, ", "variant.yaml:4: documents.dat: found the unknown key 'dat'"),
    ],
)  # fmt: skip
def test_mistakes_have_a_line_in_the_variant_file(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in VARIANT
    found = refusals(tmp_path, VARIANT.replace(old, new))
    assert any(said in line for line in found), found


def test_the_suite_alone_knows_no_texts_yet() -> None:
    documents = load_suite("texts", Path()).documents
    assert documents is not None
    assert documents.data == "own"
