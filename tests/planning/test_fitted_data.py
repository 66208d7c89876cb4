"""The sections calibration and training of a variant file: what a step needs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import PlanError
from harness.plan import make_plan
from harness.planning.specs import Plan

TEXTS = {"data": "pocket-train", "documents": 32, "steps": 10}


def plan(
    folder: Path,
    training: Any,
    step: Any = None,
    suite: str = "pocket-heldout",
    extra: Any = None,
    variant: Any = None,
) -> Plan:
    content = {
        "name": "trained",
        "reference": {"model": "pocket"},
        "variant": variant or {"compress": [step or {"backend": "qat", "bits": 2}]},
        "suites": ["./suite.yaml"],
        "gates": ["./gate.yaml"],
    }
    if training is not None:
        content["training"] = training
    rule = {"rule": "at_most", "metric": "divergence.kl_mean", "limit": 0.05, "why": "a test"}
    rules = [rule, *(extra or ())]
    documents = {"data": suite, "max": 4}
    (folder / "suite.yaml").write_text(yaml.safe_dump({"documents": documents, "measures": ["divergence"]}))
    (folder / "gate.yaml").write_text(yaml.safe_dump({"rules": rules}))
    (folder / "variant.yaml").write_text(yaml.safe_dump(content))
    return make_plan(folder / "variant.yaml")


def refused(folder: Path, *given: Any, **more: Any) -> str:
    with pytest.raises(PlanError) as error:
        plan(folder, *given, **more)
    return str(error.value)


def test_a_step_that_trains_brings_the_measure_of_its_training(tmp_path: Path) -> None:
    (suite,) = plan(tmp_path, TEXTS).suites
    assert {"training", "comparability", "divergence"} == {measure.kind for measure in suite.measures}
    (suite,) = plan(tmp_path, None, {"backend": "round_to_nearest", "bits": 4}).suites
    assert "training" not in {measure.kind for measure in suite.measures}


def test_a_gate_can_block_texts_that_were_trained_on(tmp_path: Path) -> None:
    rule = {"rule": "at_most", "metric": "training.overlap", "limit": 0.0, "decide": "point", "why": "a test"}
    found = plan(tmp_path, TEXTS, extra=[rule])
    assert [spec.rule.metric for gate in found.gates for spec in gate.rules][-1] == "training.overlap"


def test_training_data_are_needed_and_must_be_of_use(tmp_path: Path) -> None:
    found = refused(tmp_path, None)
    assert "variant.yaml:" in found
    assert "found qat, but no training data, expected texts to train on (add for example training:" in found


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({**TEXTS, "steps": 0}, "a training of 0 steps changes nothing; write for example steps: 300"),
        ({**TEXTS, "epochs": 2}, "steps or epochs says how long to train, and only one of them"),
        ({"data": "pocket-train"}, "steps or epochs says how long to train"),
        ({**TEXTS, "steps": -1}, "at least 0"),
        ({**TEXTS, "documents": 4}, "a batch of 8 documents, expected at most the 4 documents of training:"),
        ({**TEXTS, "data": "pocket-heldout"}, "on which the suite suite measures, expected documents on which"),
        ({**TEXTS, "data": "none.jsonl"}, "none.jsonl"),
        ({**TEXTS, "held_out": 0}, "greater than 0"),
        ({**TEXTS, "prompt_field": "prompt"}, "a prompt_field for pocket-train, which does not use it"),
        ({**TEXTS, "step": 3}, "the unknown key 'step'"),
        ("pocket-train", "a mapping"),
    ],
)
def test_training_data_with_mistakes_are_named(tmp_path: Path, training: Any, message: str) -> None:
    found = refused(tmp_path, training)
    assert message in found
    assert "training" in found


def test_the_seed_orders_texts_of_any_source(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a text"}\n')
    found = plan(tmp_path, {**TEXTS, "data": "./texts.jsonl", "seed": 3})
    assert found.training is not None
    assert found.training.seed == 3


def test_texts_that_no_step_trains_on_are_remarked(tmp_path: Path) -> None:
    from harness.planning.composition import remarks

    found = plan(tmp_path, TEXTS, {"backend": "round_to_nearest", "bits": 4})
    assert [note.text for note in remarks(found.variant.compress, False, True)] == [
        "training texts are named, but no step trains"
    ]


def test_prompts_are_looked_for_while_the_plan_is_made(tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text('{"prompt": "1+1=", "text": "2"}\n')
    texts = {"data": "./sums.jsonl", "documents": 32, "steps": 10}
    assert plan(tmp_path, texts | {"prompt_field": "prompt"}).training
    message = refused(tmp_path, texts | {"prompt_field": "question"})
    assert "has no field 'question' (prompt_field)" in message


def test_a_second_adapter_beside_the_weights_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    first, second = ({"backend": "qlora", "only": [f"*.layers.{number}.*"]} for number in range(2))
    content = {"compress": [first, second]}
    message = refused(tmp_path, TEXTS, variant=content)
    assert "qlora and qlora, which leave an adapter each beside the weights" in message
    assert plan(tmp_path, TEXTS, variant={"compress": [first | {"merge": True}, second]})
    (tmp_path / "a").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "a" / name).write_text("{}")
    message = refused(tmp_path, TEXTS, variant={"compress": [first], "adapter": "./a"})
    assert "an adapter, and qlora, which leaves one beside the weights" in message
    assert plan(tmp_path, TEXTS, variant={"compress": [first], "adapter": "./a", "merge": True})
