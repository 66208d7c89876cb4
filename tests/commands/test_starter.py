"""What harness init writes can be run as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.commands.starter import starter, write_starter
from harness.errors import PlanError, WriteError
from harness.plan import make_plan
from tests.planning.test_task_paths import TASK, write_task


def test_the_starter_compresses_the_embedded_model(tmp_path: Path) -> None:
    path = tmp_path / "variant.yaml"
    write_starter(path)
    plan = make_plan(path)
    assert plan.reference.model == "pocket"
    assert plan.variant.model == "reference"
    assert [step.kind for step in plan.variant.compress] == ["round_to_nearest"]
    assert [suite.name for suite in plan.suites] == ["core"]
    assert [gate.name for gate in plan.gates] == ["ship"]


def test_own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("base model", "small", "inner"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    path = Path("inner/v.yaml")
    write_starter(path, "./base model", "small")
    plan = make_plan(path)
    assert plan.name == "small"
    assert plan.reference.model == str(tmp_path / "base model")
    assert plan.variant.model == str(tmp_path / "small")
    assert plan.variant.compress == ()
    assert [suite.name for suite in plan.suites] == ["standard"]
    assert "harness check v.yaml" in path.read_text()
    hub = tmp_path / "hub.yaml"
    write_starter(hub, "owner/name")
    assert make_plan(hub).name == "name-w4-g128"


@pytest.mark.parametrize("option", ["--reference", "--variant"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./bsae", "found './bsae': no such folder (HERE/bsae), expected the folder of a model, or a GGUF file "
                   "(did you mean base?)"),
        ("./m.ggfu", "found './m.ggfu': no such folder (HERE/m.ggfu), expected the folder of a model, or a GGUF file "
                     "(did you mean m.gguf?)"),
        ("./n.gguf", "found './n.gguf': no such file (HERE/n.gguf), expected a GGUF file (did you mean m.gguf?)"),
        ("./texts.txt", "found './texts.txt': a file (HERE/texts.txt), expected the folder of a model, or a GGUF file"),
        ("a/b/c", "found 'a/b/c', expected pocket, a folder that exists, or a hub id (owner/name)"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, name: str, said: str
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "m.gguf").touch()
    (tmp_path / "texts.txt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError) as refused:
        write_starter(Path("v.yaml"), **{"reference": "./base", option.removeprefix("--"): name})  # type: ignore[arg-type]
    assert str(refused.value).replace(str(tmp_path), "HERE") == f"{option}: {said}"
    assert not Path("v.yaml").exists()


def test_a_gguf_file_is_named_relative_to_the_file_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "m.gguf").touch()
    monkeypatch.chdir(tmp_path)
    write_starter(Path("inner/v.yaml"), "m.gguf")
    assert "model: ../m.gguf" in Path("inner/v.yaml").read_text()


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "variant.yaml"
    path.write_text("mine")
    with pytest.raises(WriteError, match="already exists"):
        write_starter(path)
    assert path.read_text() == "mine"
    with pytest.raises(WriteError, match="cannot be written"):
        write_starter(tmp_path / "gone" / "variant.yaml")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_whatever_the_models_are_called_the_file_says_so_and_nothing_else(
    tmp_path: Path, reference: str, variant: str
) -> None:
    """Names may be wrong, but never become other YAML: all problems are about the models."""
    path = tmp_path / "x.yaml"
    path.write_text(starter(reference, variant), encoding="utf-8")
    keys: set[str] = set()
    try:
        make_plan(path)
    except PlanError as error:
        keys = {problem.key for problem in error.problems}
    assert keys <= {"reference.model", "variant.model"}


def test_a_task_file_is_named_relative_to_the_file_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "texts.txt").write_text("\n\n".join(f"Text {n} is about foxes." for n in range(80)))
    monkeypatch.chdir(tmp_path)
    file = Path("inner/v.yaml")
    said = write_starter(file, documents=[Path("texts.txt")], tasks=["tasks/mine.yaml", "pocket_sums"])
    assert "tasks: [../tasks/mine.yaml, pocket_sums]" in file.read_text()
    assert not any("no tasks are gated" in line for line in said)
    tasks = next(each for each in make_plan(file).suites[0].measures if each.kind == "tasks")
    assert [size.name for size in tasks.task_sizes()] == ["mine", "pocket_sums"]


def test_mistakes_of_a_task_file_leave_nothing_behind(tmp_path: Path) -> None:
    task = write_task(tmp_path, TASK.replace("{{question}}", "{{query}}"))
    (tmp_path / "texts.txt").write_text("Foxes.\n\nAnd more foxes.\n")
    for named, said in ((task, "mine.yaml:6: doc_to_text: found"), (tmp_path / "no.yaml", "--tasks: found '")):
        with pytest.raises(PlanError, match=said):
            write_starter(tmp_path / "v.yaml", documents=[tmp_path / "texts.txt"], tasks=[str(named)])
    assert not (tmp_path / "v.yaml").exists()
