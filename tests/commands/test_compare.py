"""``harness compare`` on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.cli import app
from harness.records import Comparison
from tests.helpers.folders import CHATML, SETTINGS, TOKENIZER, Pair, edit


def ran(*arguments: str) -> int:
    return int(app.main(["compare", *arguments], standalone_mode=False))


def test_equal_folders_give_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = Pair(tmp_path)
    assert ran(str(pair.reference), str(pair.variant)) == 0
    assert capsys.readouterr().out == "comparable: yes, nothing differs that would change what users get\n"


def test_what_changes_behaviour_at_once_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = Pair(tmp_path)
    pair.edit(SETTINGS, chat_template=CHATML)
    assert ran("pocket", str(pair.variant)) == 1
    said = capsys.readouterr().out
    assert "✕  chat_template default, at once: none →" in said
    assert said.splitlines()[-1].startswith("comparable: no, because of the chat template (default: none → ")


def test_what_may_be_meant_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = Pair(tmp_path)
    pair.edit("config.json", max_position_embeddings=4096)
    assert ran(str(pair.reference), str(pair.variant)) == 0
    assert "from position 512 on: 512 → 4096" in capsys.readouterr().out


def test_json_is_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = Pair(tmp_path)
    pair.edit("generation_config.json", eos_token_id=[1, 15])
    assert ran(str(pair.reference), str(pair.variant), "--json") == 1
    found = Comparison.model_validate_json(capsys.readouterr().out)
    assert [each.part for each in found.differences] == ["stop_tokens"]


def test_values_from_files_are_no_markup_and_no_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = Pair(tmp_path)
    pair.edit("generation_config.json", stop_strings=["[red]x\x1b[31m", "::error::y"])
    assert ran(str(pair.reference), str(pair.variant)) == 1
    said = capsys.readouterr().out
    assert "[red]x" in said
    assert "\x1b" not in said
    assert "::error" not in said


def run_alone(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", "compare", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_bad_input_ends_with_2(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    found = run_alone(str(pair.reference), str(tmp_path / "nowhere"))
    assert (found.returncode, found.stdout) == (2, "")
    assert "nowhere: no such folder; expected the folder of a model" in found.stderr
    (pair.variant / "config.json").write_text("[]", encoding="utf-8")
    found = run_alone(str(pair.reference), str(pair.variant))
    assert found.returncode == 2
    assert "config.json: holds a list, expected an object" in found.stderr


def large_vocabulary(held: dict[str, Any]) -> None:
    """As many tokens as models of 7 billion parameters have."""
    held["model"]["vocab"] |= {f"<{number}>": number for number in range(1536, 128_000)}


def test_large_folders_need_no_torch(tmp_path: Path) -> None:
    """Sizes of Llama 2 7B, a large vocabulary, shards without weights; both differ in nearly everything."""
    pair = Pair(tmp_path)
    for folder in (pair.reference, pair.variant):
        edit(
            folder / "config.json", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, vocab_size=128_000
        )
        edit(folder / TOKENIZER, large_vocabulary)
        edit(folder / SETTINGS, chat_template=CHATML)
    pair.edit("config.json", logit_scale=0.5, max_position_embeddings=131072)
    pair.edit(TOKENIZER, post_processor=None)
    pair.edit(SETTINGS, chat_template=CHATML + "\n")
    code = (
        "import sys, harness.cli as c; sys.argv = ['harness', 'compare', *sys.argv[1:]]\n"
        "try: c.main()\n"
        "except SystemExit as end: print(end.code)\n"
        "print(sys.modules['torch'])"
    )
    command = [sys.executable, "-c", code, str(pair.reference), str(pair.variant)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-2:] == ["1", "None"]


def test_weights_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = Pair(tmp_path)
    (pair.variant / "model.safetensors").write_bytes(b"no header, no weights")
    assert ran(str(pair.reference), str(pair.variant)) == 0
    assert capsys.readouterr().out.startswith("comparable: yes")
