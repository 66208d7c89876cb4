"""Whatever code from outside does to end the process, the command ends with 2, names the code, and leaves no pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from harness import cli
from harness.backends.round_to_nearest import RoundToNearest
from harness.measures.perplexity import Perplexity
from harness.probes.weights import Weights
from harness.rules.at_most import AtMost
from harness.system.foreign import LIMIT_VARIABLE
from harness.writers.junit import Junit
from tests.helpers.outside_package import outside_package

VARIANT = """\
name: odd
reference: {model: pocket}
variant:
  compress: [{backend: round_to_nearest, bits: 8, granularity: channel}]
suites: [./suite.yaml]
gates: [./gate.yaml]
outputs: [junit]
"""
SUITE = """\
documents: {data: pocket-heldout, max: 4, context: 64}
measures: [perplexity, memory]
"""
GATE = """\
rules:
  - {rule: at_most, metric: memory.weight_bytes, limit: 1e12, why: any size}
"""
TASK = """\
task: odd_task
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
process_docs: !function odd.process
doc_to_text: "{{text}}"
doc_to_choice: ["a", "b"]
doc_to_target: 0
metric_list: [{metric: acc}]
"""


class Panic(BaseException):
    """Like the PanicException of libraries in Rust: no Exception."""


def write(folder: Path, suite: str = SUITE) -> Path:
    for name, text in (("odd", VARIANT), ("suite", suite), ("gate", GATE)):
        (folder / f"{name}.yaml").write_text(text)
    return folder / "odd.yaml"


def harness(*arguments: object) -> int:
    return cli._run([str(argument) for argument in arguments])


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def work(*_arguments: object, **_named: object) -> NoReturn:
        raise error

    return work


PLACES = {
    "the measure perplexity": (Perplexity, "measure"),
    "the rule at_most": (AtMost, "judge"),
    "the writer junit": (Junit, "write"),
    "the probe weights": (Weights, "observe"),
    "the backend round_to_nearest": (RoundToNearest, "compress"),
    "its forward pass": (LlamaForCausalLM, "forward"),
    "the tokenizer": (PreTrainedTokenizerFast, "_encode_plus"),
    "loading its tokenizer": (PreTrainedTokenizerFast, "__init__"),
}


@pytest.mark.parametrize("named", PLACES)
@pytest.mark.parametrize("error", [SystemExit(0), Panic("index out of bounds")], ids=["exit", "panic"])
def test_ending_the_process_is_an_error_that_names_the_code(
    named: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    owner, method = PLACES[named]
    monkeypatch.setattr(owner, method, raising(error))
    assert harness("check", path, "--out", tmp_path / "runs") == 2
    told = " ".join("".join(capfd.readouterr()).split())
    assert named in told
    assert type(error).__name__ in told
    assert "defect of the harness" not in told
    written = tmp_path / "runs" / "odd" / "run.json"
    assert not written.exists() or json.loads(written.read_text())["exit_code"] != 0


def test_nothing_that_ends_the_command_itself_gives_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", type("App", (), {"main": raising(SystemExit(0))}))
    assert harness("check") == 2


@pytest.mark.parametrize(
    ("source", "limit", "told"),
    [
        ("def process(rows):\n    raise SystemExit(0)\n", "600", "raised SystemExit (0)"),
        ("def process(rows):\n    while True: len(rows)\n", "6", "gave no sign of life for 6 s"),
        (
            "import re\ndef process(rows):\n    re.fullmatch('(a+)+b', 'a' * 64)\n",
            "6",
            "gave no sign of life for 6 s",
        ),
    ],
    ids=["exit", "endless", "regex"],
)
def test_a_function_of_a_task_file_neither_ends_nor_hangs_the_run(
    source: str, limit: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    path = write(tmp_path, "measures: [memory, {measure: tasks, tasks: [odd_task], include: [tasks]}]\n")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "odd.yaml").write_text(TASK)
    (tasks / "odd.py").write_text(source)
    (tasks / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    monkeypatch.setenv(LIMIT_VARIABLE, limit)
    assert harness("check", path, "--out", tmp_path / "runs") == 2
    output = " ".join("".join(capfd.readouterr()).split())
    assert "odd_task" in output
    assert told in output


EXITING = '''\
import atexit
import os

from harness.measures import Measure
from harness.records import Metric


class Exiting(Measure):
    """Ends the process as if all were well, now or when the interpreter ends."""

    table = "tokens"
    metrics = (Metric(name="exiting.value", unit="1", better="lower", description="never measured"),)
    columns = ("document", "reference_nll")

    def measure(self, table):
        atexit.register(os._exit, 0)
        os._exit(0)
'''


def test_not_even_an_exit_past_python_gives_0(tmp_path: Path) -> None:
    package = outside_package(tmp_path, "measures", "exiting", "exiting:Exiting", exiting=EXITING)
    write(package.work, SUITE.replace("perplexity", "exiting"))
    done = package.harness("check", "odd.yaml")
    told = done.stdout + done.stderr
    assert "the measure exiting raised SystemExit (0)" in told
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("source", "told"),
    [("raise SystemExit(0)\n", "raised SystemExit"), ("spam\n", "cannot be imported: NameError")],
    ids=["exit", "broken"],
)
def test_a_package_that_does_not_import_is_named_with_file_and_line(source: str, told: str, tmp_path: Path) -> None:
    package = outside_package(tmp_path, "measures", "exiting", "exiting:Exiting", exiting=source)
    write(package.work, SUITE.replace("perplexity", "exiting"))
    done = package.harness("check", "odd.yaml")
    assert done.returncode == 2
    assert "suite.yaml:2" in done.stderr
    assert told in done.stderr
    assert "defect of the harness" not in done.stderr
