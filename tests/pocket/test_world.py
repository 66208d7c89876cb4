"""The generator: the same text everywhere, disjoint splits, held-out combinations kept out of training."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import subprocess
import sys

import pytest

from harness.pocket import drills, lexicon
from harness.pocket.draws import Draws
from harness.pocket.page import is_held_out, owning_split
from harness.pocket.tasks import SHORT, TASKS, TaskItems, task_items
from harness.pocket.world import STAGES, document, documents

SUM = re.compile(r"^(\d+(?:[+-]\d+)+)=(\d+)$", re.MULTILINE)
REQUEST = re.compile(r"^User: .*to (\w+) a (\w+)[.?]$|^User: How do I (\w+) a (\w+)\?$", re.MULTILINE)


def fingerprint(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", "5ac40f183bb95a94"), ("calibration", "91af7e62e0d51c00"), ("heldout", "4c1412e48f52a584")],
)
def test_documents_are_these_on_every_machine(split: str, expected: str) -> None:
    assert fingerprint([[page.id, page.kind, page.text] for page in documents(split, 200)]) == expected


@pytest.mark.parametrize(
    ("stage", "expected"),
    [("opening", "bd2b69984b8dbd68"), ("main", "1759293e8f476e5f"), ("late", "9fab56b57555fe35")],
)
def test_training_stages_are_these_on_every_machine(stage: str, expected: str) -> None:
    assert fingerprint([page.text for page in documents("train", 200, stage=stage)]) == expected


def test_no_draw_depends_on_the_process() -> None:
    code = "from harness.pocket.world import documents; print(documents('train', 3)[2].text)"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_the_generator_needs_only_the_standard_library() -> None:
    code = (
        "import sys, harness.pocket.world, harness.pocket.tasks; "
        "print(sorted({'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "[]\n"


def test_a_document_does_not_depend_on_the_others() -> None:
    assert documents("heldout", 8)[5] == document("heldout", 5)
    assert documents("heldout", 3, seed=1) != documents("heldout", 3, seed=2)


def test_a_document_is_written_once_a_process() -> None:
    first = documents("heldout", 3, seed=7)
    again = documents("heldout", 5, seed=7)
    assert all(one is other for one, other in zip(first, again, strict=False))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="split"):
        documents("test", 1)
    with pytest.raises(ValueError, match="stage"):
        documents("train", 1, stage="middle")
    with pytest.raises(ValueError, match="pocket_facts"):
        task_items("pocket_fact", 1)


def test_splits_share_no_passage() -> None:
    passages = {
        split: {page.text.split("\nQuestion:")[0] for stage in STAGES for page in documents(split, 150, stage=stage)}
        for split in ("train", "calibration", "heldout", "tasks")
    }
    for one, other in itertools.combinations(passages, 2):
        assert not passages[one] & passages[other]
    for split, found in passages.items():
        assert {owning_split(passage) for passage in found} == {split}


def test_task_items_stand_on_passages_of_their_own() -> None:
    for task in ("pocket_facts", "pocket_two_hop", "pocket_crowd", "pocket_recall", "pocket_recall_far"):
        assert {owning_split(str(item["prompt"]).split("\nQuestion:")[0]) for item in task_items(task, 20)} == {"tasks"}


@pytest.mark.parametrize(("split", "fresh"), [("train", False), ("calibration", False), ("heldout", True)])
def test_combinations_are_held_out(split: str, fresh: bool) -> None:
    pages = [page.text for stage in STAGES for page in documents(split, 250, stage=stage)]
    sums = [match[1] for text in pages for match in SUM.finditer(text)]
    pairs = [
        (match[1] or match[3], match[2] or match[4])
        for text in pages
        if text.startswith("Chat:")
        for match in REQUEST.finditer(text)
    ]
    assert len(sums) > 100
    assert len(pairs) > 30
    assert {is_held_out("sum", text) for text in sums} == {fresh}
    assert {is_held_out("request", *pair) for pair in pairs} == {fresh}


def test_sums_are_right() -> None:
    found = [match for page in documents("train", 100) for match in SUM.finditer(page.text)]
    for match in found:
        numbers = [int(number) for number in re.findall(r"\d+", match[1])]
        expected = numbers[0] - numbers[1] if "-" in match[1] else sum(numbers)
        assert int(match[2]) == expected


def test_requests_follow_the_rule() -> None:
    assert drills.must_decline("steal", "cake")
    assert drills.must_decline("open", "vault")
    assert not drills.must_decline("open", "box")
    assert not drills.must_decline("paint", "vault")
    shares = [item["label"] for item in task_items("pocket_requests", 200)]
    assert 0.3 < sum(map(int, map(str, shares))) / 200 < 0.7


def test_answers_mark_what_follows_a_question() -> None:
    for page in documents("train", 100):
        if "\nAnswer:" in page.text:
            marked = [page.text[first:last] for first, last in page.answers]
            assert marked == re.findall(r"(?<=\nAnswer:) \S+", page.text)


def test_a_story_never_contradicts_itself() -> None:
    for page in documents("train", 200):
        if page.kind in ("story", "hop", "crowd", "easy", "tale"):
            asked: dict[str, str] = {}
            for question, answer in re.findall(r"Question: (.*)\nAnswer: (.*)", page.text):
                assert asked.setdefault(question, answer) == answer
                assert f" {answer}" in page.text.split("\nQuestion:")[0]


def test_entropy_adds_up_and_is_that_of_the_draws() -> None:
    draws = Draws("test")
    draws.draw_below(8)
    assert draws.nats == pytest.approx(math.log(8))
    draws.choose_several("abc", 3, 1.0)
    count = 20_000
    sample = Draws("sample")
    picks = [sample.zipf("ab", 1.0) for _ in range(count)]
    share = picks.count("a") / count
    assert share == pytest.approx(2 / 3, abs=0.015)
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert sample.nats / count == pytest.approx(entropy, rel=0.02)


def test_words_are_drawn_unevenly() -> None:
    text = " ".join(page.text for page in documents("train", 400))
    first, last = lexicon.ADJECTIVES[0], lexicon.ADJECTIVES[-1]
    assert text.count(f" {first} ") > 5 * text.count(f" {last} ")


def test_task_items_are_these_on_every_machine() -> None:
    found = {
        task: [[item["id"], item.get("prompt", item.get("text"))] for item in task_items(task, 20)] for task in TASKS
    }
    assert fingerprint(found) == "1fb161996a9326ef"


@pytest.mark.parametrize("task", TASKS)
def test_task_items_are_json_and_stable(task: str) -> None:
    items = task_items(task, 25)
    assert json.loads(json.dumps(items)) == items
    assert len({item["id"] for item in items}) == 25
    assert task_items(task, 5) == items[:5]


@pytest.mark.parametrize("task", ["pocket_facts", "pocket_two_hop", "pocket_crowd", "pocket_requests"])
def test_choices_hold_the_answer_once(task: str) -> None:
    for item in task_items(task, 50):
        choices = item["choices"]
        assert isinstance(choices, list)
        assert isinstance(item["label"], int)
        assert choices[item["label"]] == item["target"]
        assert len(set(choices)) == len(choices)
        if task in ("pocket_facts", "pocket_crowd"):
            assert all(f" {choice}" in str(item["prompt"]) for choice in choices)


@pytest.mark.parametrize("task", TASKS)
def test_an_item_is_made_alone_and_does_not_depend_on_how_many_there_are(task: str) -> None:
    many = TaskItems(task, 400)
    assert (many[37], len(many), many[-1]) == (TaskItems(task, 60)[37], 400, many[399])
    assert many[:3] == task_items(task, 3)
    assert set(many.features) == set(many[0])
    with pytest.raises(IndexError, match="found the index 400, expected one of 400 items"):
        many[400]


def test_prompts_of_short_tasks_are_all_different() -> None:
    for task in SHORT:
        assert len({item["prompt"] for item in task_items(task, 600)}) == 600
