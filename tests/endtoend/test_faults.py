"""Faults that no other test injects into a whole run: none ends with 0, and the message names what broke."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from harness import cli
from harness.artifacts import fresh_process
from harness.backends.round_to_nearest import RoundToNearest
from harness.lockstep import logit_statistics
from harness.system.foreign import LIMIT_VARIABLE
from tests.helpers.gguf_files import write_gguf
from tests.helpers.tiny_models import save, tiny_llama

VARIANT = """\
name: v
reference: {model: ./model}
variant: VARIANT
weak_reference: random weights
suites: [./suite.yaml]
gates: [./gate.yaml]
outputs: [junit]
"""
EIGHT_BITS = "{compress: [{backend: round_to_nearest, bits: 8}]}"
TOKENS = "documents: {data: texts.jsonl, context: 32}\nmeasures: [divergence, perplexity, layer_error, memory]\n"
ARTIFACT = "documents: {data: texts.jsonl, context: 32}\nmeasures: [artifact]\n"
TASK = """\
task: odd_task
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: ["a", "b"]
doc_to_target: 0
metric_list: [{metric: acc}]
"""


class Desk:
    """A folder with a tiny model, texts and tasks, and what a check in it said and left."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capfd, self.said = folder, capfd, ""

    def check(self, metric: str, limit: float = 1e9, suite: str = TOKENS, variant: str = EIGHT_BITS) -> int:
        """Check the variant by one rule; returns the exit code."""
        rules = [f"{{rule: at_most, metric: {name}, limit: {limit}, why: any}}" for name in metric.split()]
        (self.folder / "gate.yaml").write_text(f"rules: [{', '.join(rules)}]\n")
        (self.folder / "suite.yaml").write_text(suite)
        (self.folder / "v.yaml").write_text(VARIANT.replace("VARIANT", variant))
        return self.harness("check", str(self.folder / "v.yaml"), "--out", str(self.folder / "runs"))

    def harness(self, *arguments: str) -> int:
        """Run the command line in this process."""
        self._capfd.readouterr()
        code = cli._run(list(arguments))
        self.said = " ".join("".join(self._capfd.readouterr()).split())
        assert "defect of the harness" not in self.said
        assert (code == 0) == ("May ship" in self.said)
        return code

    def result(self) -> dict[str, Any]:
        """The content of run.json."""
        content: dict[str, Any] = json.loads((self.folder / "runs" / "v" / "run.json").read_text())
        return content

    def statuses(self) -> dict[str, str]:
        """Status by metric of every verdict; those of the harness by their rule."""
        return {found["metric"] or found["rule"]: found["status"] for found in self.result()["verdicts"]}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    save(tiny_llama(), folder / "model")
    texts = (f"the cat number {n} sat on a mat and saw {n * 7} dogs" for n in range(8))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "odd.yaml").write_text(TASK)
    (folder / "tasks" / "rows.jsonl").write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(6)))
    return folder


@pytest.fixture
def desk(sources: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Desk:
    shutil.copytree(sources, tmp_path / "desk")
    return Desk(tmp_path / "desk", capfd)


def change_model(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Let the backend round_to_nearest do something more to its model."""
    compress = RoundToNearest.compress

    def work(self: RoundToNearest, model: Any, tokenizer: Any, calibration: Any) -> Any:
        done = compress(self, model, tokenizer, calibration)
        change(done.model)
        return done

    monkeypatch.setattr(RoundToNearest, "compress", work)


def lose_values(model: Any) -> None:
    model.model.layers[1].mlp.to("meta")


def test_a_step_that_leaves_a_module_without_values_is_an_error_that_names_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_model(monkeypatch, lose_values)
    assert desk.check("divergence.kl_mean") == 2
    assert "model.layers.1.mlp.gate_proj.weight is on the meta device" in desk.said


def test_nan_that_one_module_alone_puts_out_fails_the_rules_on_layers(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: Any) -> None:
        mlp = model.model.layers[0].mlp
        mlp.down_proj.register_forward_hook(lambda _m, _i, y: torch.where(torch.arange(y.shape[-1]) == 3, torch.nan, y))
        mlp.register_forward_hook(lambda _m, _i, y: torch.nan_to_num(y))

    change_model(monkeypatch, spoil)
    assert desk.check("layers.worst divergence.kl_mean") == 1
    assert desk.statuses() == {"layers.worst": "fail", "divergence.kl_mean": "pass"}
    assert "NaN or infinity" in desk.said


def test_choices_whose_likelihoods_are_all_nan_fail_and_are_no_first_choice(desk: Desk) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    save(model, desk.folder / "dead")
    suite = "measures: [{measure: tasks, tasks: [odd_task], include: [tasks], bos: false}]\n"
    assert desk.check("tasks.odd_task.flips", 0.999, suite, "{model: ./dead}") == 1, desk.said
    assert "6 of 6 items gave NaN or infinity on the variant's side" in desk.said


def test_a_divergence_below_zero_is_an_error_and_the_other_rules_are_judged(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = logit_statistics.logit_statistics

    def wrong(*arguments: Any) -> dict[str, Any]:
        found = real(*arguments)
        return found | {"kl": found["kl"] - 0.5}

    monkeypatch.setattr(logit_statistics, "logit_statistics", wrong)
    assert desk.check("divergence.kl_mean memory.weight_bytes") == 2
    assert desk.statuses()["divergence.kl_mean"] == "error"
    assert desk.statuses()["memory.weight_bytes"] == "pass"
    assert "measure divergence failed: MeasureError" in desk.said


def test_a_reference_that_does_not_repeat_itself_decides_nothing_without_a_noise_floor(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, chance = LlamaForCausalLM.forward, torch.Generator().manual_seed(0)

    def shake(self: LlamaForCausalLM, *arguments: Any, **named: Any) -> Any:
        output = forward(self, *arguments, **named)
        output.logits = output.logits + 1e-4 * torch.randn(output.logits.shape, generator=chance)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", shake)
    assert desk.check("divergence.kl_mean") == 3
    assert desk.statuses() == {"divergence.kl_mean": "pass", "the reference repeats itself": "inconclusive"}
    assert "two runs of the same batch through the reference differ" in desk.said
    run, gate = str(desk.folder / "runs" / "v"), str(desk.folder / "gate.yaml")
    assert desk.harness("judge", run, "--gate", gate) == 3
    floors = TOKENS + "noise_floor: [batch_size]\n"
    assert desk.check("divergence.kl_mean", suite=floors) == 0


def drift(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = {"tokenizers": ".post1"}
    monkeypatch.setattr("harness.system.environment.version", lambda name: version(name) + newer.get(name, ""))


def use_another_thread(_: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


@pytest.fixture
def _same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_same_threads")
@pytest.mark.parametrize("change", [drift, use_another_thread])
def test_tables_of_another_environment_are_not_resumed(
    change: Callable[[pytest.MonkeyPatch], None], desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert desk.check("divergence.kl_mean") == 0
    first = desk.result()
    assert desk.check("divergence.kl_mean") == 0
    assert "cleared" not in desk.said
    assert desk.result()["data_key"] == first["data_key"]
    change(monkeypatch)
    assert desk.check("divergence.kl_mean") == 0
    assert "cleared" in desk.said
    assert desk.result()["data_key"] != first["data_key"]
    assert desk.result()["environment"] != first["environment"]


DYING = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
HOSTILE = """\
import json, os, sys
from pathlib import Path

config = next(Path(os.environ["DESK"]).rglob("artifact/config.json"))
config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoModelForCausalLM": "own.Model"}}))
(config.parent / "own.py").write_text(f"open({str(config.parent / 'ran')!r}, 'w')")
from harness.artifacts.worker import main

sys.exit(main())
"""


@pytest.mark.parametrize(
    ("source", "told"), [(DYING, "was ended by SIGKILL (memory may have run out)"), (HOSTILE, "auto_map")]
)
def test_a_process_that_cannot_read_the_artifact_back_never_passes_and_is_asked_again(
    source: str, told: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk.folder / "odd_worker.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(desk.folder))
    monkeypatch.setenv("DESK", str(desk.folder))
    with monkeypatch.context() as patch:
        patch.setattr(fresh_process, "WORKER", "odd_worker")
        assert desk.check("artifact.logits_max_abs_diff artifact.kl_mean", suite=ARTIFACT) in (1, 2)
    assert told in desk.said
    assert not list(desk.folder.rglob("ran"))
    assert desk.check("artifact.logits_max_abs_diff artifact.kl_mean", suite=ARTIFACT) == 0


INNER = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(9) %}{% endfor %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        pytest.param(INNER, "its chat template cannot be rendered: SecurityError", id="escape"),
        pytest.param(ENDLESS, "gave no sign of life for 4 s", id="endless"),
    ],
)
def test_a_hostile_chat_template_of_a_gguf_file_neither_runs_code_nor_hangs(
    template: str, told: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    settings = desk.folder / "model" / "tokenizer_config.json"
    plain = json.loads(settings.read_text()) | {"chat_template": "{{ messages[0].content }}"}
    settings.write_text(json.dumps(plain))
    write_gguf(tiny_llama(), desk.folder / "odd.gguf", "F32", values={"tokenizer.chat_template": template})
    monkeypatch.setenv(LIMIT_VARIABLE, "4")
    suite = """\
documents: {data: texts.jsonl, context: 32, max: 2}
measures: [{measure: generation, prompt_tokens: 4, new_tokens: 2, chat: true}]
"""
    assert desk.check("generation.diverged", 0.9, suite, "{model: ./odd.gguf}") == 2
    assert told in desk.said


def test_a_debugger_that_is_attached_times_nothing(desk: Desk) -> None:
    suite = "measures: [{measure: latency, repeats: 6, prompt_tokens: 4, new_tokens: 2}]\n"
    sys.settrace(lambda *_: None)
    try:
        assert desk.check("latency.ratio", suite=suite) == 2
    finally:
        sys.settrace(None)
    assert "a debugger, tracer or profiler is attached" in desk.said


def shell(desk: Desk, command: str) -> tuple[int, str]:
    """The exit code and output of a command in the desk's folder; ``harness`` stands for the command line."""
    line = command.replace("harness", f"{sys.executable} -m harness")
    done = subprocess.run(
        ["bash", "-c", line], cwd=desk.folder, env=os.environ, capture_output=True, check=False, timeout=120
    )
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


NO_MOUNT = "this system does not allow a process to mount a file system of its own"


@pytest.mark.parametrize("kilobytes", [pytest.param(8, marks=pytest.mark.slow), 48])
def test_a_file_system_that_fills_is_an_error_and_the_run_resumes_elsewhere(kilobytes: int, desk: Desk) -> None:
    mounted = f"mkdir -p small && mount -t tmpfs -o size={kilobytes}k small small"
    if shutil.which("unshare") is None or shell(desk, f"unshare -rm sh -c '{mounted}'")[0] != 0:
        pytest.skip(NO_MOUNT)
    assert desk.check("divergence.kl_mean") == 0
    kept = "cp -r small/v kept; cat small/v/run.json"
    code, said = shell(
        desk, f"unshare -rm sh -c '{mounted} && harness check v.yaml --out small; code=$?; {kept}; exit $code'"
    )
    assert code == 2
    assert "No space left on device" in said
    assert "May ship" not in said
    assert '"exit_code": 0' not in said
    shutil.rmtree(desk.folder / "runs")
    (desk.folder / "runs").mkdir()
    (desk.folder / "kept").rename(desk.folder / "runs" / "v")
    undisturbed = desk.check("divergence.kl_mean")
    assert undisturbed == 0


def test_memory_that_runs_out_while_an_error_is_told_does_not_end_with_the_code_of_a_failed_rule(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: str) -> str:
        raise MemoryError

    monkeypatch.setattr(cli, "_defuse", refuse)
    assert cli._run(["check", str(desk.folder / "nothing.yaml")]) == 2
    assert "class of failure: resources" in capfd.readouterr().err


@pytest.mark.parametrize("megabytes", [pytest.param(400, marks=pytest.mark.slow), 900])
def test_an_address_space_that_is_too_small_is_no_pass_and_no_defect(megabytes: int, desk: Desk) -> None:
    assert desk.check("divergence.kl_mean") == 0
    code, said = shell(desk, f"ulimit -v {megabytes * 1000}; harness check v.yaml --out small")
    assert code in {2, 128 + signal.SIGABRT, 128 + signal.SIGKILL, 128 + signal.SIGSEGV}, said
    assert "May ship" not in said
    assert "defect of the harness" not in said
    assert not (desk.folder / "small" / "v" / "run.json").exists()
