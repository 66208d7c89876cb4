"""An engine from another package, the one that its guide shows: logits by its own means, no modules of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from harness.data.documents import read_documents
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.records import ModelSpec
from tests.helpers.outside_package import OutsidePackage, outside_package

GUIDE = Path(__file__).parents[2] / ".github" / "guides" / "engine.md"

SUITE = """\
documents: {data: pocket-heldout, max: 6, context: 64}
measures:
  - divergence
  - perplexity
  - layer_error
  - memory
  - weight_error
  - {measure: tasks, tasks: [pocket_facts], limit: 20}
  - {measure: generation, new_tokens: 8, max: 3}
  - {measure: latency, repeats: 1, prompt_tokens: 16, new_tokens: 2}
"""

GATE = """\
rules:
  - {rule: at_most, metric: divergence.kl_mean, limit: 50.0, why: A table of pairs knows something.}
  - {rule: at_most, metric: perplexity.ratio, limit: 1.5, why: And it knows less than the model.}
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OutsidePackage:
    folder = tmp_path_factory.mktemp("outside")
    (source,) = re.findall(r"```python\n(# bigrams\.py\n.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    made = outside_package(folder, "engines", "bigrams", "bigrams:Bigrams", bigrams=source)
    (made.work / "suite.yaml").write_text(SUITE)
    (made.work / "gate.yaml").write_text(GATE)
    (made.work / "table").mkdir()
    pocket = load(ModelSpec(model="pocket"), "pocket")
    size = pocket.language_model.vocabulary
    counts = np.full((size, size), 0.01)
    for ids in encoded(pocket, "pocket-calibration", 200, 10_000):
        np.add.at(counts, (ids[:-1], ids[1:]), 1.0)
    np.save(made.work / "table" / "table.npy", np.log(counts))
    return made


def encoded(pocket: LoadedModel, data: str, documents: int, context: int) -> list[list[int]]:
    """Token ids of documents, each behind BOS and cut at the context."""
    texts = [document.text for document in read_documents(data, documents, "text", "\n\n", 0)]
    every = [pocket.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [[pocket.tokenizer.bos_token_id, *ids][:context] for ids in every]


def perplexity_by_hand(package: OutsidePackage, temperature: float) -> float:
    """Of the table on the documents of the suite, in float64."""
    logits = np.load(package.work / "table" / "table.npy") / temperature
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    documents = encoded(load(ModelSpec(model="pocket"), "pocket"), "pocket-heldout", 6, 64)
    return float(np.exp(-np.concatenate([logs[ids[:-1], ids[1:]] for ids in documents]).mean()))


def write(package: OutsidePackage, **variant: Any) -> Path:
    content = {
        "name": "table",
        "reference": {"model": "pocket"},
        "variant": {"model": "./table", "engine": "bigrams", "tokenizer": "reference", **variant},
        "suites": ["./suite.yaml"],
        "gates": ["./gate.yaml"],
    }
    path = package.work / "variant.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_it_is_listed_and_planned(package: OutsidePackage) -> None:
    listed = package.harness("list")
    assert listed.returncode == 0, listed.stderr
    assert "Logits from a table of pairs of tokens" in listed.stdout
    write(package)
    planned = package.harness("plan", "variant.yaml")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "bigrams, 0 steps" in planned.stdout


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        (
            {"engine": "bigram"},
            "expected one of bigrams, llama_cpp, transformers (did you mean bigrams?)",
        ),
        ({"engine": {"engine": "bigrams", "temprature": 2.0}}, "(did you mean temperature?)"),
        ({"compress": [{"backend": "round_to_nearest", "bits": 4}]}, "bigrams, which gives no access to weights"),
        ({"model": "reference", "tokenizer": "own"}, "found bigrams with reference, expected a folder or a hub id"),
        ({"dtype": "bfloat16"}, "with engine bigrams, which computes in the formats of the file"),
    ],
)
def test_what_it_cannot_do_is_refused_by_the_plan(package: OutsidePackage, variant: dict[str, Any], said: str) -> None:
    write(package, **variant)
    planned = package.harness("plan", "variant.yaml")
    assert planned.returncode == 2, planned.stdout
    assert said in " ".join(planned.stderr.split())


def test_it_is_run_judged_and_drawn_and_what_needs_modules_is_skipped_with_the_reason(package: OutsidePackage) -> None:
    write(package, engine={"engine": "bigrams", "temperature": 1.25})
    checked = package.harness("check", "variant.yaml")
    assert checked.returncode == 1, checked.stdout + checked.stderr
    run = json.loads((package.work / "runs" / "table" / "run.json").read_text())
    assert run["asked"]["variant"]["engine"] == {"engine": "bigrams", "temperature": 1.25}
    found = {each["name"]: each for each in run["measurements"]}
    skipped = {each["measure"]: each["reason"] for each in run["skipped"]}
    assert 0.1 < found["divergence.kl_mean"]["change"] < 50
    assert found["perplexity.value"]["variant"] == pytest.approx(perplexity_by_hand(package, 1.25), rel=1e-4)
    assert found["perplexity.ratio"]["change"] > 1.5
    assert 0 < found["tasks.pocket_facts.accuracy"]["variant"] < found["tasks.pocket_facts.accuracy"]["reference"]
    assert any(name.startswith("generation.") for name in found)
    assert skipped["layers.worst"] == "the engine bigrams gives no access to the inputs and outputs of its modules"
    assert skipped["latency.ratio"] == "the engine bigrams gives no access to a key-value cache"
    assert {"weights.worst", "memory.weight_bytes", "memory.kv_bytes_per_token"} <= skipped.keys()
    statuses = {verdict["metric"]: verdict["status"] for verdict in run["verdicts"]}
    assert statuses == {"divergence.kl_mean": "pass", "perplexity.ratio": "fail"}
    assert "bigrams" in (package.work / "runs" / "table" / "report.html").read_text()
