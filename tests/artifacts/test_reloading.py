"""The fresh process: what it answers, what it refuses, and what is said of it when it dies."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.artifacts import fresh_process
from harness.artifacts.exchange import Exchange, Request
from harness.artifacts.outputs import model_outputs
from harness.artifacts.reloading import ReloadError, read_back
from harness.artifacts.worker import answer_request
from harness.errors import WriteError
from harness.models.loading import load
from harness.records import ModelSpec
from harness.testing.models import random_documents, randomize_gains
from tests.helpers.tiny_models import save, tiny_llama

NOWHERE: Any = lambda done, of: None  # noqa: E731 - progress that nobody watches


class Steps:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def step(self, what: str, done: int, of: int) -> None:
        self.seen.append((what, done, of))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(randomize_gains(tiny_llama()), tmp_path / "model")


def request(model: Path, *texts: str) -> Request:
    return Request(name="variant, read back", spec=ModelSpec(model=str(model)), texts=texts)


def documents() -> dict[str, torch.Tensor]:
    return {f"document/{number}": ids for number, ids in enumerate(random_documents(11, 6, seed=2))}


def refusal(exchange: Exchange, model: Path) -> str:
    exchange.put_request(request(model), documents())
    assert answer_request(exchange, NOWHERE) == 2
    return exchange.get_refusal()


@pytest.mark.slow
def test_a_fresh_process_says_what_this_one_says_to_the_last_bit(model: Path, tmp_path: Path) -> None:
    steps = Steps()
    said, found = read_back(request(model, "two texts", "of it"), documents(), tmp_path / ".reload", steps)
    loaded = load(ModelSpec(model=str(model)), "here")
    here = model_outputs(loaded.model, list(documents().values()), NOWHERE)
    assert found.keys() == here.keys()
    assert all(torch.equal(found[name], here[name]) for name in here)
    assert said.weights_sha256 == loaded.identity.weights_sha256
    assert said.text_ids == tuple(tuple(loaded.tokenizer(text)["input_ids"]) for text in ("two texts", "of it"))
    assert steps.seen[0] == ("artifact: read back", 0, 13)
    assert steps.seen[-1] == ("artifact: read back", 13, 13)
    assert not (tmp_path / ".reload").exists()


def test_what_the_loader_refuses_is_refused_in_its_words(model: Path, tmp_path: Path) -> None:
    exchange = Exchange(tmp_path)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "modelopt"}}))
    assert "quant_method is 'modelopt', which transformers does not know" in refusal(exchange, model)


def test_tensors_that_nobody_reads_are_refused_too(model: Path, tmp_path: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[f"{name}_scale"] = torch.ones(1)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert f"unexpected: {name}_scale" in refusal(Exchange(tmp_path), model)


def test_a_model_that_loads_and_cannot_run_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("expected m1 and m2 to have the same dtype")

    monkeypatch.setattr("harness.artifacts.outputs.model_outputs", breaks)
    assert "it loads but cannot be run: RuntimeError: expected m1" in refusal(Exchange(tmp_path), model)


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("import sys; sys.stderr.write('one\\ntwo\\n'); sys.exit(3)", r"exit code 3; its last output: one \| two"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"SIGKILL \(memory may have run out\)"),
        ("print('7 of nothing')", "could not be compared"),
    ],
)
def test_a_process_that_dies_or_says_nothing_is_an_error_with_its_last_words(
    does: str, words: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short_lived.py").write_text(does)
    monkeypatch.setattr(fresh_process, "WORKER", "short_lived")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    kind = WriteError if "nothing" in does else ReloadError
    with pytest.raises(kind, match=words):
        read_back(request(model), documents(), tmp_path / ".reload", Steps())
    assert not (tmp_path / ".reload").exists()


def test_a_place_that_cannot_be_written_is_an_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        read_back(request(model), documents(), tmp_path / "file" / ".reload", Steps())


def test_a_process_does_not_outlive_what_started_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Steps):
        def step(self, what: str, done: int, of: int) -> None:
            raise KeyboardInterrupt

    (tmp_path / "endless.py").write_text(
        "import os, pathlib, sys, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "print('0 1', flush=True)\ntime.sleep(600)\n"
    )
    monkeypatch.setattr(fresh_process, "WORKER", "endless")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        read_back(request(model), documents(), tmp_path / ".reload", Interrupted())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


TELLS_ITS_NAME = """
import os, pathlib, sys
folder = sys.stdin.readline().rstrip()
(pathlib.Path(folder) / "refusal.json").write_text('{"reason": "told by %d"}' % os.getpid())
sys.exit(2)
"""


@pytest.fixture
def telling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that answer with their numbers."""
    (tmp_path / "tells.py").write_text(TELLS_ITS_NAME)
    monkeypatch.setattr(fresh_process, "WORKER", "tells")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def told_by(model: Path, place: Path) -> int:
    """The process that was asked, by what it answered."""
    with pytest.raises(ReloadError, match="told by") as raised:
        read_back(request(model), documents(), place / ".reload", Steps())
    return int(str(raised.value).split()[-1])


@pytest.mark.usefixtures("telling")
def test_a_process_started_early_is_asked_first_and_only_once(model: Path, tmp_path: Path) -> None:
    with fresh_process.start_early():
        early = fresh_process._EARLY.get()
        assert early is not None
        assert early.runs
        assert told_by(model, tmp_path) == early._process.pid
        assert told_by(model, tmp_path) != early._process.pid


@pytest.mark.usefixtures("telling")
def test_a_process_that_ended_early_is_replaced_and_one_that_nobody_needs_is_ended(model: Path, tmp_path: Path) -> None:
    with fresh_process.start_early():
        early = fresh_process._EARLY.get()
        assert early is not None
        early.end()
        assert told_by(model, tmp_path) != early._process.pid
    with fresh_process.start_early():
        unneeded = fresh_process._EARLY.get()
    assert unneeded is not None
    assert not unneeded.runs
    assert fresh_process._EARLY.get() is None


def test_a_process_that_is_told_nothing_ends_by_itself_as_when_what_started_it_is_killed() -> None:
    with fresh_process.start() as process:
        assert process._process.stdin is not None
        process._process.stdin.close()
        assert process.follow(lambda _: None) is None
