"""Models of many shapes: every probe, every simulated backend and real libraries work on each, or say what they leave.

The quick part runs each backend on the shapes that differ for it; all pairs are the slow part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from harness import plugins
from harness.backends import Backend
from harness.data.calibration import CalibrationDocuments
from harness.data.contamination import DocumentIndex
from harness.errors import BackendError
from harness.lockstep.driver import shared_pass
from harness.measures import Measure
from harness.models.loaded import LoadedModel
from harness.modules.experts import stacks
from harness.plugins import load
from harness.probes import Context, Probe
from harness.probes.items import Items
from harness.probes.timings import Timings
from harness.probes.weights import Weights
from harness.records import Measurement, Skipped
from harness.running.calibration import with_calibration
from harness.tables.store import Store
from harness.testing.models import random_documents, tiny_tokenizer
from harness.testing.trials import as_variant, calibration_for, logits
from tests.helpers.pass_pairs import Silent, make_documents
from tests.helpers.tiny_models import EXPERTS, FAMILIES, family

torch.set_num_threads(1)
BACKENDS: dict[str, dict[str, Any]] = {
    "round_to_nearest": {"bits": 4},
    "gptq": {"bits": 4},
    "awq": {"bits": 4, "scale_grid": 3, "clip_grid": 3},
    "smoothquant": {},
    "llm_int8": {},
    "dense_and_sparse": {"bits": 4},
    "mixed_precision": {"bits": (4, 8), "target_bits_per_weight": 7.0, "sensitivity": "output_error"},
    "activations": {"bits": 8},
    "kv_cache": {"bits": 4, "residual": 0, "group_size": 8},
    "qat": {"bits": 4, "batch": 8, "evaluations": 1},
}
LIBRARIES: dict[str, dict[str, Any]] = {
    "torchao": {"method": "int8_weight_only"},
    "bitsandbytes": {"method": "nf4"},
    "quanto": {"weights": "int8"},
}
SHAPES = ("llama_tied", "phi3", "gpt2", "falcon", "qwen2_moe", "gpt_oss", "listed_experts")
"""Families that together have every shape: fused, Conv1D, own product, stacks in both orientations, lists."""
REFUSED = {
    ("kv_cache", "falcon"): r"kv_cache: FalconAttention \(layer 0 of FalconForCausalLM\) does not use transformers'",
    (
        "torchao",
        "falcon",
    ): r"torchao: transformer\.h\.0\.self_attention\.query_key_value: FalconLinear has its own matrix product",
    **{
        (
            library,
            "gpt2",
        ): rf"{library}: transformer\.h\.0\.attn\.c_attn: is a Conv1D, the library supports nn.Linear only"
        for library in ("torchao", "bitsandbytes", "quanto")
    },
}
LEFT = {"llm_int8", "activations", *LIBRARIES}
"""Steps that take linear layers only, and leave stacks of experts."""


@cache
def reference(name: str) -> Any:
    return family(name)


def quick(first: Sequence[str], second: Sequence[str], some: Sequence[str]) -> list[Any]:
    """All pairs; those outside ``some`` are slow."""
    slow = pytest.mark.slow
    return [pytest.param(a, b, marks=() if b in some else slow, id=f"{a}-{b}") for a in first for b in second]


def variant(backend: str, settings: dict[str, Any], name: str) -> LoadedModel:
    step: Any = load(Backend, backend)(**settings)
    for library in step.requires:
        pytest.importorskip(library)
    return as_variant(step, reference(name), calibration_for(step))


def refused(backend: str, settings: dict[str, Any], name: str) -> bool:
    """Whether the backend refuses the family, as it is known to; another refusal fails."""
    if (backend, name) not in REFUSED:
        return False
    with pytest.raises(BackendError, match=REFUSED[backend, name]):
        variant(backend, settings, name)
    return True


def check(made: LoadedModel, backend: str, name: str) -> None:
    """Every weight that the step takes is described, every stack that it leaves is named."""
    step: Any = load(Backend, backend)
    before, after = logits(reference(name)), logits(made.model)
    assert bool(torch.isfinite(after).all())
    apart = float((after - before).abs().max() / before.std())
    if step.puts_on_grid:
        assert apart > 1e-6, "nothing changed"
    else:
        assert apart < 1e-3, "what prepares must not change what is computed"
    full = {full for full, _, _ in stacks(made.model)}
    if "weights" in step.quantizes:
        taken = [m for m in made.identity.modules if m.role == "linear" and m.module not in full]
        assert {m.backend for m in taken} == {backend}
        # A codebook, or the values of a format, are much for a layer of so few weights.
        assert all(m.bits_per_weight < 32 for m in taken)
    left = [note.text for note in made.notes if "remain in full precision" in note.text]
    if name in EXPERTS and backend in LEFT:
        assert left
        assert re.search(r"4 stacks of experts, with \d\d% of all parameters", left[0])
        assert all(m.bits_per_weight == 32 for m in made.identity.modules if m.module in full)
    else:
        assert not left
        expected = {backend} if "weights" in step.quantizes else {""}
        assert {m.backend for m in made.identity.modules if m.module in full} <= expected


@pytest.mark.parametrize(("backend", "name"), quick(list(BACKENDS), list(FAMILIES), SHAPES))
def test_simulated_backends_serve_every_family_or_say_why_not(backend: str, name: str) -> None:
    if not refused(backend, BACKENDS[backend], name):
        check(variant(backend, BACKENDS[backend], name), backend, name)


@pytest.mark.parametrize(("backend", "name"), quick(list(LIBRARIES), list(FAMILIES), SHAPES))
def test_libraries_serve_every_family_or_say_why_not(backend: str, name: str) -> None:
    if backend not in plugins.names(Backend):
        pytest.skip("no such backend")
    if not refused(backend, LIBRARIES[backend], name):
        check(variant(backend, LIBRARIES[backend], name), backend, name)


def calibrated(made: LoadedModel, documents: list[Tensor]) -> LoadedModel:
    class Numbers:
        """A tokenizer whose tokens are numbers."""

        all_special_ids = (0,)

        def batch_decode(self, rows: list[list[int]]) -> list[str]:
            return [str(row[0]) for row in rows]

    encoded = make_documents([len(ids) for ids in documents], seed=5)
    seen = DocumentIndex(Numbers(), [document.ids for document in encoded])  # type: ignore[arg-type]
    return with_calibration(made, CalibrationDocuments("made", tuple(encoded), seen, ()), ranges=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_probe_of_the_pass_serves_every_family(name: str, tmp_path: Path) -> None:
    made = calibrated(variant("gptq", {"bits": 4}, name), random_documents(3, 20, seed=1))
    original = replace(made.with_modules("reference", reference(name)), calibration=None)
    store = Store(tmp_path / "store", "key")
    every = ("tokens", "layers", "channels", "calibration_data", "experts")
    probes: list[Any] = [load(Probe, kind)() for kind in every]
    report = shared_pass(original, [made], make_documents(), probes, [store.sink("s")], Silent())
    Weights(errors=True).observe(Context(original, [made], [store.sink("s")], Silent()))
    tables = {table: store.read("s", table) for table in store.tables("s")}
    store.close()
    routed = name == "listed_experts"
    assert set(report.unpaired[0].values()) <= {"an expert sees only the tokens routed to it" if routed else ""}
    layers = tables["layers"]
    assert layers is not None
    kinds = {"block", "attention", "linear"} | ({"experts"} if name in EXPERTS else set())
    assert set(layers["kind"]) == kinds | ({"mlp"} if name != "opt" else set()), "OPT has no module for its MLP"
    for kind in ("divergence", "perplexity", "calibration", "layer_error", "outliers", "calibration_data", "experts",
                 "memory", "hardware", "weight_error", "logits"):  # fmt: skip
        measure: Any = load(Measure, kind)()
        assert isinstance(measure, Measure)
        table = tables[measure.table]
        assert table is not None
        found = measure.measure(table)
        skipped = {entry.measure: entry.reason for entry in found if isinstance(entry, Skipped)}
        assert all(skipped.values())
        unserved = {"hardware.", "memory.peak_bytes"} | (set() if name in EXPERTS else {"experts."})
        unserved |= {"experts.agreement"} if routed else set()
        for entry in skipped:
            assert any(entry.startswith(start) for start in unserved), f"{entry}: {skipped[entry]}"
        assert all(m.non_finite is None for m in found if isinstance(m, Measurement))


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in ("gpt2", "gpt_oss") else pytest.mark.slow) for name in FAMILIES
])  # fmt: skip
def test_tasks_and_timings_serve_every_family(name: str, tmp_path: Path) -> None:
    (tmp_path / "task.jsonl").write_text('{"q": "ab", "choices": ["c", "de"], "label": 0}\n' * 3)
    (tmp_path / "task.yaml").write_text(
        f"task: tiny\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'task.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: choices\n"
        "doc_to_target: label\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
        "metadata: {version: 1}\n"
    )
    made = variant("round_to_nearest", {"bits": 8}, name)
    original = replace(made.with_modules("reference", reference(name)), tokenizer=tiny_tokenizer())
    frames: dict[str, pd.DataFrame] = {}
    sink: Any = SimpleNamespace(
        done=lambda unit: unit in frames, commit=lambda _unit, tables, _snapshots=None: frames.update(tables)
    )
    context = Context(original, [made], [sink], Silent())
    Items(tasks=("tiny",), include=(str(tmp_path),), bos=False).observe(context)
    Timings(repeats=1, warmup=0, prompt_tokens=6, new_tokens=2).observe(context)
    assert len(frames["items"]) >= 3
    assert len(frames["timings"])
