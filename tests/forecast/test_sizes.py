"""How much there is to measure and what it costs, by files alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.errors import MemoryShortageError
from harness.forecast.cost import amount, check_fits, cost
from harness.forecast.model_size import ModelSize, model_size
from harness.forecast.sizes import document_count
from harness.measures.tasks import Tasks
from harness.plan import make_plan
from harness.pocket import MODEL_DIR
from harness.records import Clock, DocumentsSpec, HubData
from tests.helpers.made_run import make_run

HERE = Path(__file__).parent
ITEMS_AT_ONCE = 64 * 4 * 4 * 200 * 1536
"""Bytes of the logits of a batch of items, and of their logarithms, in float32: more than the shared pass holds."""


def test_the_embedded_model_is_counted_by_its_header() -> None:
    found = model_size("pocket")
    assert isinstance(found, ModelSize)
    # bfloat16 has two bytes a parameter.
    file = MODEL_DIR / "model.safetensors"
    header = 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]
    assert found.parameters * 2 == file.stat().st_size - header
    assert (found.stored_bytes, found.vocabulary) == (file.stat().st_size, 1536)


def test_shards_are_added_up_and_the_vocabulary_may_stand_in_text_config(tmp_path: Path) -> None:
    save_file({"a": np.zeros((3, 5), np.float32)}, tmp_path / "model-1.safetensors", metadata={"format": "pt"})
    save_file({"b": np.zeros(7, np.float16), "c": np.ones((), np.float32)}, tmp_path / "model-2.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"vocab_size": 11}}))
    found = model_size(str(tmp_path))
    assert isinstance(found, ModelSize)
    assert (found.parameters, found.vocabulary) == (15 + 7 + 1, 11)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 7, struct.pack("<Q", 2**60), struct.pack("<Q", 4) + b"[1]x", struct.pack("<Q", 9) + b'{"a": {}}'],
)
def test_a_file_that_is_no_safetensors_is_a_sentence_not_an_accident(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    found = model_size(str(tmp_path))
    assert isinstance(found, str)
    assert "model.safetensors" in found


def test_an_empty_folder_and_an_unknown_model_say_so(tmp_path: Path) -> None:
    assert "no safetensors file" in str(model_size(str(tmp_path)))
    assert "not on this machine" in str(model_size("nobody/no-such-model-at-all"))


def test_documents_are_counted_where_files_tell(tmp_path: Path) -> None:
    lines, texts = tmp_path / "a.jsonl", tmp_path / "a.txt"
    lines.write_text('{"text": "a"}\n\n{"text": "b"}\n{"text": "c"}\n')
    texts.write_text("one\n\n\n\ntwo\n\nthree")
    assert document_count(None) == 0
    assert document_count(DocumentsSpec(data="pocket-heldout")) == 200
    assert document_count(DocumentsSpec(data="pocket-heldout", max=7)) == 7
    assert document_count(DocumentsSpec(data=str(lines))) == 3
    assert document_count(DocumentsSpec(data=str(lines), max=2)) == 2
    assert document_count(DocumentsSpec(data=str(texts))) == 3
    assert document_count(DocumentsSpec(data=str(texts), packed=True)) is None
    assert document_count(DocumentsSpec(data=HubData(hub="a/b", split="test"))) is None
    assert document_count(DocumentsSpec(data=HubData(hub="a/b", split="test"), max=50)) == 50


def test_items_of_shipped_own_and_standard_tasks(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "task: own\noutput_type: multiple_choice\ncustom_dataset: !function own.make\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    names = ("pocket_sums", "pocket_prose", "own", "gsm8k", "nobody_knows")
    found = {size.name: size for size in Tasks(tasks=names, include=(str(tmp_path),)).task_sizes()}
    assert (found["pocket_sums"].items, found["pocket_sums"].metrics) == (1400, ("exact_match",))
    assert found["pocket_prose"].metrics == ("word_perplexity", "byte_perplexity", "bits_per_byte")
    assert (found["own"].items, found["own"].choices, found["own"].metrics) == (None, None, ("accuracy", "acc_norm"))
    assert found["gsm8k"].items == 1319
    assert (found["nobody_knows"].items, found["nobody_knows"].metrics) == (None, ())
    assert [size.items for size in Tasks(tasks=names, limit=40).task_sizes()] == [40, 40, 40, 40, 40]


def test_an_earlier_clock_is_scaled_stage_by_stage() -> None:
    plan = make_plan(HERE.parent / "planning" / "pocket.yaml")
    now = amount(plan.suites)
    assert (now.tokens, now.items, now.calls, now.complete) == (200 * 512, 42260, 20, True)
    made = make_run().run
    suite = {
        "documents": {"max": 100, "context": 512},
        "noise_floor": {"conditions": ["rounding"], "documents": 8},
        "measures": [
            {"measure": "latency", "repeats": 40},
            {"measure": "generation", "max": 20, "prompt_tokens": 32, "new_tokens": 160},
        ],
    }
    asked = {"suites": [suite]}
    counts = {"tasks.a.accuracy": 4226, "generation.exact_match": 20}
    measurements = tuple(made.measurements[0].model_copy(update={"name": k, "n": n}) for k, n in counts.items())
    clock = Clock(
        started="",
        finished="",
        seconds={
            "load reference": 1.0,
            "noise floor": 0.5,
            "shared pass": 10.0,
            "items": 3.0,
            "generations": 1.0,
            "timings": 4.0,
        },
    )
    run = made.model_copy(
        update={
            "asked": asked,
            "measurements": measurements,
            "clock": clock,
            "reference": made.reference.model_copy(update={"parameters": 2 * 2_754_816}),
        }
    )
    found = cost(plan, run)
    # Floors: 5 conditions and the reference as it is, on 16 documents; then one condition, on 8.
    assert found.seconds == pytest.approx((1 + 6 * 0.5 + 2 * 10 + 10 * 3 + 80 / 20 * 1 + 4 / 2) / 2)
    assert run.name in found.seconds_by
    # Eight tasks of 240 items and one of 60, if every rule about them is decided at the first look.
    assert found.least == pytest.approx((1 + 6 * 0.5 + 2 * 10 + 1980 / 4226 * 3 + 80 / 20 * 1 + 4 / 2) / 2)


def test_without_a_clock_time_follows_from_the_speed_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(HERE.parent / "planning" / "pocket.yaml")
    found = {}
    for speed in (1e9, 2e9, 1e30):
        monkeypatch.setattr("harness.forecast.cost.measure_operations", lambda speed=speed: speed)
        found[speed] = cost(plan, None).seconds or 0.0
    fixed = found[1e30]
    assert found[1e9] - fixed == pytest.approx(2 * (found[2e9] - fixed), rel=1e-6)
    # Documents and items pass both sides, noise floors the reference; generation is slower, a token at a time.
    passed, written = 2 * (200 * 512 + 140 * 42260) + (1 + 5) * 16 * 512, 2 * 80 * (32 + 160)
    operations = 2 * 2_754_816 * (passed / 0.7 + written / 0.3)
    assert found[1e9] - fixed == pytest.approx(operations / 1e9, rel=1e-6)
    assert fixed > 9
    assert cost(plan, None).seconds_by.startswith("1000000000000")


def test_memory_holds_both_sides_working_memory_and_libraries() -> None:
    found = cost(make_plan(HERE.parent / "planning" / "pocket.yaml"), None)
    weights = 4 * 2_754_816
    assert found.memory == pytest.approx(2.5 * weights + ITEMS_AT_ONCE + 650e6)


def test_memory_of_tasks_grows_with_the_items_of_a_batch_and_the_vocabulary(tmp_path: Path) -> None:
    """A batch of items keeps the logits of all its tokens, and their logarithms: for a large vocabulary that is more
    than what the shared pass holds."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"vocab_size": 32000}')
    save_file({"a": np.zeros(1000, np.float32)}, tmp_path / "model" / "model.safetensors")
    file, suite = tmp_path / "variant.yaml", tmp_path / "suite.yaml"
    file.write_text(
        "name: v\nreference: {model: ./model}\nvariant: {model: ./model}\nsuites: [./suite.yaml]\ngates: [smoke]\n"
    )
    needed = []
    for settings in ("", ", batch_size: 32", ", batch_size: 32, limit: 4"):
        suite.write_text(
            "documents: {data: pocket-heldout, max: 8, context: 512}\n"
            f"measures: [logits, divergence, perplexity, {{measure: tasks, tasks: [pocket_facts]{settings}}}]\n"
        )
        needed.append(cost(make_plan(file), None).memory)
    logits = 4 * 4 * 200 * 32000
    assert needed[0] == pytest.approx(8000 + 16 * logits + 650e6)
    assert needed[1] == pytest.approx(8000 + 32 * logits + 650e6)
    assert needed[2] == pytest.approx(8000 + 4 * logits + 650e6)


def test_models_that_are_larger_than_the_machine_are_refused_before_they_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan(HERE.parent / "planning" / "pocket.yaml")
    monkeypatch.setattr("harness.forecast.cost.total_memory", lambda: 3 * 4 * 2_754_816)
    check_fits([plan, plan])
    with pytest.raises(
        MemoryShortageError, match=r"the reference .* and 3 variants take .* GB of memory of this machine"
    ):
        check_fits([plan, plan, plan])
    monkeypatch.setattr("harness.forecast.cost.total_memory", lambda: None)
    check_fits([plan] * 9)


def test_a_checkpoint_takes_the_memory_of_its_files_unless_steps_follow(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    save_file({"a": np.zeros(1000, np.int8)}, tmp_path / "small" / "model.safetensors")
    file = tmp_path / "variant.yaml"
    steps = "compress: [{backend: round_to_nearest, bits: 4, group_size: 32}]"
    file.write_text((HERE.parent / "planning" / "pocket.yaml").read_text().replace(steps, "model: ./small"))
    both = cost(make_plan(file), None).memory
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert both == pytest.approx(4 * 2_754_816 + size + ITEMS_AT_ONCE + 650e6)
