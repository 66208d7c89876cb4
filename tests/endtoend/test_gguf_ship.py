"""A GGUF file against a folder: what its header and its values show is judged, the rest is said, an honest one passes.

llama.cpp itself is replaced by a stand-in of the same interface.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import harness
from harness.check import check
from harness.plan import load_gate
from harness.terminal import Terminal
from tests.helpers.folders import CHATML, SETTINGS, edit, make_folder
from tests.helpers.gguf_files import bpe_tokens, write_gguf
from tests.helpers.llama_cpp_stand_in import install

gguf = pytest.importorskip("gguf")
Fields = dict[str, Any]
SUITE = """\
description: s
documents: {data: pocket-heldout, max: 3, context: 48}
measures: [logits, divergence, layer_error, weight_error, coverage, artifact]
"""
LARGE = ("tasks.", "generation.", "perplexity.", "calibration.", "divergence.")
"""Rules of the gate ship that need more documents or tasks; what they judge is the same for every engine."""
UNREAD = 1400
"""The id of a token that no document of the suite holds."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "ref", weights=True)
    edit(tmp_path / "ref" / SETTINGS, chat_template=CHATML)
    content = yaml.safe_load((Path(harness.__file__).parents[1] / "gates" / "ship.yaml").read_text(encoding="utf-8"))
    content["rules"] = [rule for rule in content["rules"] if not rule["metric"].startswith(LARGE)]
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (tmp_path / "s.yaml").write_text(SUITE, encoding="utf-8")
    return tmp_path


def write(
    folder: Path, change: Callable[[Any, Fields], None] | None = None, template: str = CHATML, **more: str
) -> None:
    """The reference as Q8_0, with changes of its model and tokens."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "ref")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "ref")
    tokens = bpe_tokens(tokenizer)
    if change is not None:
        change(model, tokens)
    values = {"tokenizer.chat_template": template} if template else {}
    write_gguf(model, folder / "q.gguf", "Q8_0", tokens=tokens, values=values | more)


def checked(folder: Path, engine: str = "llama_cpp", more: str = "") -> tuple[int, str, dict[str, Any]]:
    variant = f"{{model: ./q.gguf, engine: {engine}{more}}}"
    text = f"name: t\nreference: {{model: ./ref}}\nvariant: {variant}\nsuites: [./s.yaml]\ngates: [./g.yaml]\n"
    (folder / "t.yaml").write_text(text, encoding="utf-8")
    log = io.StringIO()
    code = check([folder / "t.yaml"], folder / "runs", Terminal(Console(file=log, width=300)))
    return code, log.getvalue(), json.loads((folder / "runs/t/run.json").read_text(encoding="utf-8"))


def failed(run: dict[str, Any]) -> set[str]:
    """Metrics of blocking rules that failed, or could not be judged."""
    found = (each for each in run["verdicts"] if each["level"] == "block" and each["status"] != "pass")
    return {each["metric"] or each["rule"] for each in found}


def test_an_honest_file_passes_with_what_was_not_measured_counted_as_warnings(folder: Path) -> None:
    write(folder)
    code, log, run = checked(folder)
    assert code == 0, log
    open_ = {each["metric"] for each in run["verdicts"] if each["status"] == "error"}
    assert {"weights.outlying", "coverage.untouched_changed", "coverage.untouched_damaged"} <= open_
    assert {"comparability.at_once", "comparability.decoder"} <= open_
    judged = {each["metric"] for each in run["verdicts"] if each["status"] == "pass"}
    for part in ("chat_template", "stop_tokens", "generation_config", "common_text", "texts"):
        assert f"comparability.{part}" in judged
    assert "coverage.non_finite" in judged
    topics = [note["topic"] for note in run["notes"] if note["level"] == "warn"]
    assert {"comparability", "untouched"} <= set(topics)
    assert run["warnings"] == len(topics)
    assert f"{len(topics)} warnings" in log
    assert "comparable: partly" in log
    assert all("nothing shows NaN" not in note["text"] for note in run["notes"])


def lose_stop_token(_: Any, tokens: Fields) -> None:
    tokens["eos"] = 0


def put_nan(model: Any, _: Fields) -> None:
    table = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = False
    model.lm_head.weight = type(table)(table.detach().clone(), requires_grad=False)
    table.data[UNREAD, :32] = float("nan")


def lose_start_token(_: Any, tokens: Fields) -> None:
    tokens["adds_bos"] = False


@pytest.mark.parametrize(
    ("change", "fields", "metric"),
    [
        (lose_stop_token, {}, "comparability.stop_tokens"),
        (None, {"template": CHATML.replace("<|im_end|>", "</s>")}, "comparability.chat_template"),
        (None, {"template": ""}, "comparability.chat_template"),
        (put_nan, {}, "coverage.non_finite"),
        (lose_start_token, {}, "comparability.common_text"),
    ],
)
def test_what_a_file_shows_is_judged(
    folder: Path, change: Callable[[Any, Fields], None] | None, fields: Fields, metric: str
) -> None:
    write(folder, change, **fields)
    code, log, run = checked(folder)
    assert code == 1, log
    assert metric in failed(run), log


def test_sampling_defaults_that_a_file_leaves_open_are_said(folder: Path) -> None:
    edit(folder / "ref" / "generation_config.json", temperature=0.3, do_sample=True)
    write(folder)
    code, log, run = checked(folder)
    assert code == 0, log
    (rule,) = (each for each in run["verdicts"] if each["metric"] == "comparability.generation_config")
    assert (rule["status"], rule["level"]) == ("error", "warn")
    assert "does not state do_sample, temperature" in log


def test_a_borrowed_tokenizer_is_not_the_one_that_users_get(folder: Path) -> None:
    write(folder)
    code, log, run = checked(folder, more=", tokenizer: reference")
    assert code == 0, log
    open_ = {each["metric"] for each in run["verdicts"] if each["status"] == "error"}
    assert {"comparability.common_text", "comparability.texts"} <= open_
    assert "its users get the one in its file" in log


def test_weights_that_are_hidden_cannot_pass_the_gate_strict() -> None:
    excused = {spec.rule.metric for spec in load_gate("strict", Path()).rules if spec.rule.on_unsupported == "warn"}
    assert {metric.partition(".")[0] for metric in excused} == {"comparability"}
