"""What differs beside the weights is said in every check, and stops it where behaviour changes at once."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.check import check
from harness.plan import load_gate
from harness.terminal import Terminal
from tests.helpers.folders import CHATML, SETTINGS, TOKENIZER, edit, make_folder

GENERATION, CONFIG = "generation_config.json", "config.json"
SUITE = "description: s\ndocuments: {data: pocket-heldout, max: 3, context: 48}\nmeasures: [logits]\n"
PIECE = {"id": 813, "content": "estro"}
"""A token of the vocabulary that no document holds."""
BLOCKING = ("chat_template", "stop_tokens", "generation_config", "common_text", "texts", "decoder", "at_once")
RULE = "- {{rule: at_most, metric: comparability.{}, limit: 0.0, level: {}, why: w}}\n"
"""The rules of the gate ``ship`` on comparability, without those on quality, for which a few documents are too few."""
LOGITS = "- {rule: at_most, metric: logits.max_abs_diff, limit: 100.0, decide: point, why: w}\n"


@dataclass
class Said:
    """What a check said."""

    code: int
    log: str
    run: dict[str, Any]

    @property
    def line(self) -> str:
        """The line about comparability."""
        (found,) = (line.strip() for line in self.log.splitlines() if line.strip().startswith("comparable: "))
        return found

    @property
    def failed(self) -> set[str]:
        """Metrics of the rules that did not pass."""
        return {each["metric"].partition(".")[2] for each in self.run["verdicts"] if each["status"] != "pass"}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two copies of the embedded model."""
    monkeypatch.chdir(tmp_path)
    for side in ("ref", "var"):
        make_folder(tmp_path / side, weights=True)
    return tmp_path


def checked(folder: Path, variant: str = "{model: ./var}", suite: str = SUITE, gate: str = "./g.yaml") -> Said:
    rules = "".join(RULE.format(metric, "block") for metric in BLOCKING) + RULE.format("beyond_inputs", "warn")
    (folder / "s.yaml").write_text(suite, encoding="utf-8")
    (folder / "g.yaml").write_text(f"description: g\nrules:\n{LOGITS}{rules}", encoding="utf-8")
    text = f"name: t\nreference: {{model: ./ref}}\nvariant: {variant}\nsuites: [./s.yaml]\ngates: [{gate}]\n"
    (folder / "t.yaml").write_text(text, encoding="utf-8")
    log = io.StringIO()
    code = check([folder / "t.yaml"], folder / "runs", Terminal(Console(file=log, width=300)))
    return Said(code, log.getvalue(), json.loads((folder / "runs/t/run.json").read_text(encoding="utf-8")))


def lose_post_processor(folder: Path) -> None:
    edit(folder / "var" / TOKENIZER, post_processor=None)


def lose_decoder(folder: Path) -> None:
    edit(folder / "var" / TOKENIZER, decoder=None)


def shorten_context(folder: Path) -> None:
    edit(folder / "var" / CONFIG, max_position_embeddings=128)


def demote_marker(folder: Path) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for side, special in (("ref", True), ("var", False)):
        entry = {**PIECE, "special": special, **flags}
        held = json.loads((folder / side / TOKENIZER).read_text(encoding="utf-8"))
        edit(folder / side / TOKENIZER, added_tokens=[*held["added_tokens"], entry])


def show_special_tokens(folder: Path) -> None:
    edit(folder / "var" / TOKENIZER, lambda held: [token.update(special=False) for token in held["added_tokens"]])


def change_template(folder: Path) -> None:
    edit(folder / "ref" / SETTINGS, chat_template=CHATML)
    (folder / "var" / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>", "</s>"), encoding="utf-8")


def lose_template(folder: Path) -> None:
    (folder / "ref" / "chat_template.jinja").write_text(CHATML, encoding="utf-8")


def lose_stop_token(folder: Path) -> None:
    edit(folder / "ref" / GENERATION, eos_token_id=[1, 15])


def lose_generation_config(folder: Path) -> None:
    lose_stop_token(folder)
    (folder / "var" / GENERATION).unlink()


def add_penalty(folder: Path) -> None:
    edit(folder / "var" / GENERATION, repetition_penalty=1.8)


def suppress_tokens(folder: Path) -> None:
    edit(folder / "var" / GENERATION, suppress_tokens=[4, 5, 6, 7])


@pytest.mark.parametrize(
    ("change", "failed", "said"),
    [
        (change_template, {"chat_template", "at_once"}, "the chat template (default: "),
        (lose_template, {"chat_template", "at_once"}, "the chat template (default: {% for"),
        (lose_stop_token, {"stop_tokens", "at_once"}, "the stop tokens (eos_token_id: [1, 15]"),
        (lose_generation_config, {"stop_tokens", "at_once"}, "→ [1] (config.json)"),
        (add_penalty, {"generation_config", "at_once"}, "repetition_penalty: 1.0 → 1.8"),
        (suppress_tokens, {"generation_config", "at_once"}, "suppress_tokens: none → [4, 5, 6, 7]"),
        (lose_post_processor, {"common_text", "texts", "at_once", "beyond_inputs"}, "the tokenizer's post-processor"),
        (lose_decoder, {"decoder", "at_once"}, "the tokenizer's decoder"),
        (shorten_context, {"at_once"}, "config.json from position 128 on (max_position_embeddings: 512 → 128)"),
        (demote_marker, {"at_once"}, "the tokenizer's added tokens"),
    ],
)
def test_what_changes_behaviour_at_once_blocks(
    folders: Path, change: Callable[[Path], None], failed: set[str], said: str
) -> None:
    change(folders)
    found = checked(folders)
    assert found.code == 1
    assert found.failed == failed
    assert found.line.startswith("comparable: no, because of ")
    assert said in found.line
    assert found.run["comparison"]["comparable"] == "no"
    assert found.run["failure"] == "comparability"
    assert "same bytes" not in found.log + json.dumps(found.run["notes"])


def extend_context(folder: Path) -> None:
    edit(folder / "var" / CONFIG, max_position_embeddings=131072)


def scale_rope(folder: Path) -> None:
    edit(folder / "ref" / CONFIG, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1000.0})


def drop_window(folder: Path) -> None:
    for side, window in (("ref", 512), ("var", None)):
        edit(folder / side / CONFIG, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=window)


def ask_for_scale(folder: Path) -> None:
    edit(folder / "var" / CONFIG, logit_scale=0.5)


def add_token(folder: Path) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    entry = {**PIECE, **flags}
    edit(folder / "var" / TOKENIZER, lambda found: found["added_tokens"].append(entry))


def replace_accents(folder: Path) -> None:
    edit(folder / "var" / TOKENIZER, normalizer={"type": "Replace", "pattern": {"String": "é"}, "content": "e"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (extend_context, "config.json from position 512 on (max_position_embeddings: 512 → 131072)"),
        (scale_rope, "config.json from position 512 on (rope_parameters.factor: 4.0 → none)"),
        (drop_window, "config.json from position 512 on (sliding_window: 512 → none)"),
        (ask_for_scale, "config.json (logit_scale: none → 0.5)"),
        (add_token, "the tokenizer's added tokens"),
        (replace_accents, "the tokenizer's normalizer"),
        (show_special_tokens, "the tokenizer's added tokens"),
    ],
)
def test_what_no_document_exercises_warns(folders: Path, change: Callable[[Path], None], said: str) -> None:
    change(folders)
    found = checked(folders)
    assert found.code == 0
    assert found.failed == {"beyond_inputs"}
    assert found.line.startswith("comparable: partly, because of ")
    assert said in found.line


def test_a_copy_is_the_same_bytes_and_says_so_on_the_terminal(folders: Path) -> None:
    found = checked(folders)
    assert found.code == 0
    assert found.line == "comparable: yes, both folders hold the same bytes in every file that a user would load"
    assert "are the same bytes" in json.dumps(found.run["notes"])


def test_other_weights_in_equal_folders_are_not_the_same_bytes(folders: Path) -> None:
    edit(folders / "var" / GENERATION, transformers_version="4.0.0")
    found = checked(folders)
    assert found.code == 0
    assert found.line == "comparable: yes, nothing differs that would change what users get"
    assert "the same bytes" not in found.log + json.dumps(found.run["notes"])
    assert "compute the same: weights, configuration and tokenizer" in json.dumps(found.run["notes"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_copy_saved_again_in_shards_and_another_dtype_is_comparable(folders: Path, dtype: torch.dtype) -> None:
    edit(folders / "ref" / GENERATION, temperature=0.7, do_sample=True)
    (folders / "ref" / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    shutil.rmtree(folders / "var")
    model: Any = AutoModelForCausalLM.from_pretrained(folders / "ref", dtype=dtype)
    model.save_pretrained(folders / "var", max_shard_size="2MB")
    AutoTokenizer.from_pretrained(folders / "ref").save_pretrained(folders / "var")
    assert (folders / "var" / "model.safetensors.index.json").is_file()
    found = checked(folders)
    assert found.code == 0
    assert not found.failed
    assert found.line.startswith("comparable: yes, nothing differs that would change what users get")


def test_a_lost_start_token_does_not_pass_the_gate_smoke(folders: Path) -> None:
    lose_post_processor(folders)
    suite = SUITE.replace("[logits]", "[logits, divergence, perplexity]")
    found = checked(folders, suite=suite, gate="smoke")
    assert found.code == 1
    failed = {each["metric"] for each in found.run["verdicts"] if each["status"] == "fail"}
    assert failed == {"comparability.common_text", "comparability.texts"}


@pytest.mark.parametrize("gate", ["ship", "strict"])
def test_shipped_gates_block_what_changes_at_once_and_warn_of_the_rest(gate: str) -> None:
    levels = {spec.rule.metric: spec.rule.level for spec in load_gate(gate, Path()).rules}
    assert {metric for metric, level in levels.items() if metric.startswith("comparability.") and level == "block"} == {
        f"comparability.{part}" for part in BLOCKING
    }
    assert levels["comparability.beyond_inputs"] == "warn"


def test_a_variant_made_here_has_the_files_of_the_reference(folders: Path) -> None:
    found = checked(folders, "{compress: [{backend: round_to_nearest, bits: 8, granularity: channel}], artifact: none}")
    assert found.code == 0
    assert found.line == "comparable: yes, the variant has the reference's own tokenizer and configuration"
    assert found.run["comparison"]["basis"] == "reference"


def test_the_saved_artifact_is_compared_where_there_is_one(folders: Path) -> None:
    change_template(folders)
    suite = SUITE.replace("[logits]", "[logits, artifact]")
    found = checked(folders, "{compress: [{backend: round_to_nearest, bits: 8, granularity: channel}]}", suite)
    assert found.run["comparison"]["basis"] == "artifact"
    assert found.code == 0, found.log
    assert found.run["comparison"]["comparable"] == "yes"


def test_files_of_a_variant_whose_tokenizer_differs_are_not_zero_by_construction(folders: Path) -> None:
    lose_post_processor(folders)
    found = checked(folders, suite=SUITE.replace("[logits]", "[logits, artifact]"))
    (texts,) = (m for m in found.run["measurements"] if m["name"] == "artifact.texts_changed")
    assert texts["change"] == 1.0
    assert texts["method"] == "exact: 3 of 3 documents"
