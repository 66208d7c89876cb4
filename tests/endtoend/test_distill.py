"""A student that is made in the run, as a user makes it: distilled, quantized, judged layer by layer, saved."""

from __future__ import annotations

from pathlib import Path

from tests.endtoend.test_check import read, run

SUITE = """\
documents: {data: pocket-heldout, max: 6, context: 48}
measures: [divergence, perplexity, layer_error, weight_error, memory, coverage, artifact]
"""
GATE = """\
rules:
  - {rule: at_most, metric: divergence.kl_mean, limit: 9.0, decide: point, why: anything passes}
  - {rule: at_most, metric: artifact.kl_max, limit: 0.000001, decide: point, why: what is saved is the student}
"""
FILE = """\
name: student
reference: {model: pocket}
variant:
  compress:
    - backend: distill
      student: {layers: halve}
      batch: 4
      learning_rate: 0.001
      evaluations: 2
      objectives:
        - {objective: logit, alpha: 0.5}
        - {objective: sequence, prompt_tokens: 8, new_tokens: 8}
        - {objective: SECOND}
    - {backend: round_to_nearest, bits: 8}
training: {data: pocket-train, documents: 8, held_out: 4, tokens: 32, steps: 2}
suites: [./suite.yaml]
gates: [./gate.yaml]
"""


def write(folder: Path, second: str = "feature") -> Path:
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "gate.yaml").write_text(GATE)
    path = folder / "student.yaml"
    path.write_text(FILE.replace("SECOND", second))
    return path


def test_a_student_is_compared_with_the_layers_that_it_was_made_of(tmp_path: Path) -> None:
    code, said = run(tmp_path, "check", write(tmp_path))
    assert code == 0, said
    record = read(tmp_path, "student")
    measured = {(each["name"], each["module"]): each for each in record["measurements"]}
    assert (
        0 < measured["memory.weight_bytes", None]["variant"] < 0.6 * measured["memory.weight_bytes", None]["reference"]
    )
    assert record["variant"]["parameters"] < 0.7 * record["reference"]["parameters"]
    # Layer 1 of the student is layer 2 of the reference, under whose name it stands.
    blocks = {
        module.split(".")[2] for name, module in measured if name == "layers.relative_error" and "layers" in module
    }
    assert blocks == {"0", "2"}
    assert "the first being model.layers.1: no layer of the variant stands for it" in said
    curves = {each["name"] for each in record["measurements"]}
    assert {"training.held_out_loss", "training.held_out_kl"} <= curves
    (texts,) = (tmp_path / "runs" / "student" / "training").glob("*.texts.safetensors")
    assert texts.stat().st_size > 0


def test_a_task_that_cannot_teach_is_an_error(tmp_path: Path) -> None:
    code, said = run(tmp_path, "check", write(tmp_path, "traces, task: pocket_sums"))
    assert code == 2, said
    assert "pocket_sums has no training_split" in said
