"""model_card.md: the hub's own parser reads the results, and what others wrote into a card stays, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard as HubCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from harness.errors import WriteError
from harness.writers.model_card import BEGIN, END, ModelCard, merge
from tests.helpers.hostile import HOSTILE, rename_everything, small
from tests.helpers.made_run import Made

CARD = """\
---
# written by hand
license: apache-2.0
tags: [a, 'b']   # two
model-index:
- name: somebody
  results:
  - task: {type: text-generation}
    dataset: {name: MMLU, type: mmlu}
    metrics:
    - {type: acc, value: 0.5}
datasets:
- x
---
# My model

Text with | pipes | and   spaces.  \r
"""


def test_the_hub_reads_what_was_measured(made: dict[str, Made], tmp_path: Path) -> None:
    run = made["fail"].run
    path = ModelCard().write(run, made["fail"].tables, tmp_path)
    data = HubCard.load(path).data
    assert data.model_name == run.name
    found = {each.metric_type: each.metric_value for each in data.eval_results}
    ratio = next(m for m in run.measurements if m.name == "perplexity.ratio")
    assert found["perplexity.ratio.change"] == ratio.change
    assert all(each.task_type == "text-generation" for each in data.eval_results)
    assert eval_results_to_model_index(data.model_name, data.eval_results)
    text = path.read_text()
    for part in ("What it lost", "Must not ship", "int4, group 32, simulated", "reference: pocket"):
        assert part in text


def test_a_card_keeps_every_other_byte(made: dict[str, Made], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(CARD.encode())
    writer = ModelCard(card=str(tmp_path / "README.md"))
    text = writer.write(made["fail"].run, made["fail"].tables, tmp_path).read_bytes().decode()
    assert (tmp_path / "README.md").read_bytes() == CARD.encode()
    before, _, after = CARD.partition("model-index:")
    assert text.startswith(before)
    rest, body = after[after.index("datasets:") :].split("---\n")
    assert f"{rest}---\n{body}\n{BEGIN}\n" in text
    data: Any = HubCard(text, ignore_metadata_errors=False).data
    assert data.license == "apache-2.0"
    assert data.to_dict()["model-index"]


def test_results_of_others_stay_and_own_ones_are_replaced(made: dict[str, Made]) -> None:
    from harness.report.front_matter import read_entry, split_card

    run = made["fail"].run
    once = merge(CARD, run, Path("runs/x"))
    assert merge(once, run, Path("runs/x")) == once
    later = merge(once, made["pass"].run, Path("runs/x"))
    index = read_entry(split_card(later)[0], "model-index")
    assert index[0] == read_entry(split_card(CARD)[0], "model-index")[0]
    assert [model["name"] for model in index] == ["somebody", run.name]
    assert len(index[1]["results"]) == 1
    assert later.count(BEGIN) == later.count(END) == 1
    assert "May ship" in later
    assert "Must not ship" not in later


def test_results_of_others_for_the_same_model_stay(made: dict[str, Made]) -> None:
    from harness.report.front_matter import read_entry, split_card

    run = made["fail"].run
    card = CARD.replace("somebody", run.name)
    (model,) = read_entry(split_card(merge(merge(card, run, Path("x")), run, Path("x")))[0], "model-index")
    assert [each["dataset"]["type"] for each in model["results"]] == ["mmlu", "lm-shipcheck"]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("---\n- a\n---\n", "expected a mapping"),
        ("---\na: [\n---\n", "is not YAML"),
        ("---\nmodel-index: 3\n---\n", "no list of models"),
        (f"{BEGIN}{END}\n{BEGIN}{END}", "more than one section"),
    ],
)
def test_a_card_that_cannot_be_merged_is_refused(made: dict[str, Made], card: str, message: str) -> None:
    with pytest.raises(WriteError, match=message):
        merge(card, made["fail"].run, Path("x"))


def test_a_missing_card_is_named(made: dict[str, Made], tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"gone\.md: the model card cannot be read"):
        ModelCard(card=str(tmp_path / "gone.md")).write(made["fail"].run, made["fail"].tables, tmp_path)


@pytest.mark.parametrize("text", [text for text in HOSTILE if text])
def test_the_hub_reads_hostile_names_as_names(tmp_path: Path, text: str) -> None:
    path = ModelCard().write(rename_everything(text), small().tables, tmp_path)
    data = HubCard.load(path).data
    assert {each.dataset_type for each in data.eval_results} == {"lm-shipcheck"}
    again = merge(path.read_text(), rename_everything(text), tmp_path)
    assert again == path.read_text()
