"""Backends that run elsewhere: a real subprocess with a real interpreter, whose worker rounds to nearest."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.backends import Compressed
from harness.backends._common.isolated import IsolatedBackend, run_worker
from harness.backends.gptqmodel import GptqModel
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError, PlanError
from harness.models.identity import weights_sha256
from harness.models.loading import load
from harness.plan import make_plan
from harness.records import ModelSpec
from harness.testing.models import random_documents, tiny_llama, tiny_tokenizer

torch.set_num_threads(1)


class Elsewhere(IsolatedBackend):
    """Rounds to nearest in another process."""

    kind = "elsewhere"
    library = "elsewhere"
    worker = Path(__file__).with_name("isolated_worker.py")
    create = "python3 -m venv .venv-elsewhere"

    bits: int = 8
    """Bits of a code."""
    do: str = "round"
    """What the worker does."""

    def job(self) -> Mapping[str, Any]:
        return {"bits": self.bits, "do": self.do}


def elsewhere(**settings: Any) -> Elsewhere:
    return Elsewhere(python=sys.executable, **settings)


def compress(step: IsolatedBackend | RoundToNearest, model: Any) -> Compressed:
    return step.compress(copy.deepcopy(model), tiny_tokenizer(), random_documents(3, 10, seed=1))


def test_what_comes_back_is_what_rounding_here_gives(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_llama(tied=False)
    before = weights_sha256(model)
    done = compress(elsewhere(bits=4), model)
    here = compress(RoundToNearest(bits=4, granularity="channel"), model)
    state, wanted = done.model.state_dict(), here.model.state_dict()
    assert all(state[name].equal(wanted[name]) for name in wanted)
    assert weights_sha256(model) == before
    strip: Any = {"backend": True, "stored_bytes": True, "bits_per_weight": True, "format": {"ranges"}}
    assert [m.model_dump(exclude=strip) for m in done.modules] == [m.model_dump(exclude=strip) for m in here.modules]
    for module in done.modules:
        outputs, inputs = done.model.get_parameter(f"{module.module}.weight").shape
        assert module.stored_bytes == outputs * inputs // 2 + outputs // 2 + outputs * 4  # codes, zero points, scales
        assert module.bits_per_weight == pytest.approx(8 * module.stored_bytes / (outputs * inputs))
    assert "elsewhere: 3 documents of 30 tokens" in capsys.readouterr().err


def test_layers_and_head_are_chosen_as_anywhere() -> None:
    model = tiny_llama(tied=True)
    done = compress(elsewhere(only=("*.q_proj", "lm_head"), skip=()), model)
    assert [each.module.rpartition(".")[2] for each in done.modules] == ["q_proj", "q_proj", "lm_head"]
    head: Any = done.model.get_output_embeddings()
    assert not head.weight.equal(model.get_output_embeddings().weight)
    embedding: Any = done.model.get_input_embeddings()
    assert embedding.weight.equal(model.get_input_embeddings().weight)
    assert not done.model.config.tie_word_embeddings


def test_what_is_shipped_is_the_checkpoint_of_the_worker(tmp_path: Path) -> None:
    """Read back from disk it is the model that was measured; of a copy of that model nothing is known."""
    step, model = elsewhere(bits=4, only=("*.up_proj", "lm_head"), skip=()), tiny_llama(tied=True)
    done = compress(step, model)
    step.save(done.model, tmp_path / "shipped")
    tiny_tokenizer().save_pretrained(tmp_path / "shipped")
    read = load(ModelSpec(model=str(tmp_path / "shipped")), "shipped")
    state, wanted = read.model.state_dict(), done.model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(state[name].equal(wanted[name]) for name in wanted)
    (up,) = (each for each in read.identity.modules if each.module == "model.layers.0.mlp.up_proj")
    assert (up.format.name, up.kernel, up.backend) == ("int4", "simulated", "gptq")
    with pytest.raises(BackendError, match="elsewhere: a later step changed the model"):
        step.save(copy.deepcopy(done.model), tmp_path / "other")


def test_a_worker_that_fails_is_quoted() -> None:
    with pytest.raises(BackendError) as refusal:
        compress(elsewhere(do="fail"), tiny_llama())
    text = str(refusal.value)
    assert text.startswith("elsewhere: its worker ended with exit code 1")
    assert "a word of warning" in text
    assert text.endswith("RuntimeError: the library has had enough")


def test_a_worker_that_takes_too_long_is_ended() -> None:
    before = time.monotonic()
    with pytest.raises(BackendError, match=r"(?s)was ended after 10 s, its timeout.*a word of warning"):
        compress(elsewhere(do="hang", timeout=10.0), tiny_llama())
    assert time.monotonic() - before < 300


def test_nothing_that_a_worker_started_outlives_it(tmp_path: Path) -> None:
    child = "import subprocess, sys; print(subprocess.Popen(['sleep', '500']).pid, flush=True); sys.exit(3)"
    seen: list[str] = []
    with pytest.raises(BackendError, match="exit code 3"):
        run_worker("any", [sys.executable, "-c", child], tmp_path, 120.0, seen.append)
    pid = int(seen[0].removeprefix("any: "))
    for _ in range(100):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child lives on")


def test_a_worker_that_is_killed_is_said_to_be(tmp_path: Path) -> None:
    own = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(BackendError, match=r"ended by SIGKILL \(memory may have run out\).*\n\(nothing\)"):
        run_worker("any", [sys.executable, "-c", own], tmp_path, 120.0, print)


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("leave nothing", "the checkpoint of its worker cannot be read"),
        ("leave half", r"cannot be read: model\.layers\.0\.self_attn\.q_proj: its weight is packed .* without scales"),
        ("forget", r"model\.layers\.0\.self_attn\.q_proj and 0 more are missing from the worker"),
        ("spoil", r"model\.layers\.0\.self_attn\.q_proj: the worker returned a weight"),
    ],
)
def test_what_does_not_fit_is_refused(do: str, said: str) -> None:
    with pytest.raises(BackendError, match=said):
        compress(elsewhere(do=do), tiny_llama())


def test_a_missing_environment_is_named_with_what_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_GPTQMODEL_PYTHON", raising=False)
    step = GptqModel(bits=4)
    assert str(tmp_path / ".venv-gptqmodel/bin/python") in step.lacks()
    assert "python3 -m venv .venv-gptqmodel" in step.lacks()
    with pytest.raises(BackendError, match="gptqmodel: its library runs in a separate environment"):
        compress(step, tiny_llama())
    monkeypatch.setenv("HARNESS_GPTQMODEL_PYTHON", sys.executable)
    assert step.interpreter() == Path(sys.executable)
    assert not step.lacks()
    assert GptqModel(bits=4, python="/nowhere/python").lacks()


def test_the_plan_says_that_an_environment_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HARNESS_GPTQMODEL_PYTHON", raising=False)
    content = """
name: elsewhere
reference: {model: pocket}
variant: {compress: [{backend: gptqmodel, bits: 4}]}
calibration: {data: pocket-calibration, documents: 2, tokens: 16}
suites: [core]
gates: [ship]
"""
    (tmp_path / "variant.yaml").write_text(content)
    with pytest.raises(PlanError, match=r"variant\.yaml:4: .*gptqmodel.*create the environment with: python3 -m venv"):
        make_plan(tmp_path / "variant.yaml")
    (tmp_path / "variant.yaml").write_text(content.replace("bits: 4", "bits: 4, python: env/bin/python"))
    with pytest.raises(PlanError, match=r"env/bin/python': not found .*expected a path that exists"):
        make_plan(tmp_path / "variant.yaml")
    (tmp_path / "env" / "bin").mkdir(parents=True)
    os.symlink(sys.executable, tmp_path / "env" / "bin" / "python")
    (step,) = make_plan(tmp_path / "variant.yaml").variant.compress
    # A link stays a link: what lies beside it makes the environment.
    assert getattr(step, "python") == str(tmp_path / "env" / "bin" / "python")  # noqa: B009
