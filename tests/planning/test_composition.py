"""Which steps may follow which, on toy backends that say what they quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.backends import Backend, Compressed
from harness.errors import Problem
from harness.planning.checking import Checker
from harness.planning.composition import check_composition, remarks
from harness.system.yaml_file import read_yaml


class Step(Backend):
    """A step that is planned and never run."""

    def compress(self, model: Any, tokenizer: Any, calibration: Any) -> Compressed:
        raise AssertionError("a plan compresses nothing")


class Smooth(Step):
    """Prepares."""

    needs_calibration = True


class Weights(Step):
    """Rounds weights."""

    quantizes = ("weights",)
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ("lm_head",)


class Inputs(Step):
    """Rounds inputs."""

    quantizes = ("activations",)
    static: bool = False

    @property
    def calibrates(self) -> bool:
        return self.static


class Both(Step):
    """Rounds both and leaves no choice of modules."""

    quantizes = ("weights", "activations")


class Cache(Step):
    """Rounds the cache."""

    quantizes = ("cache",)
    only: tuple[str, ...] = ()


for _cls, _name in ((Smooth, "smooth"), (Weights, "weights"), (Inputs, "inputs"), (Both, "both"), (Cache, "cache")):
    _cls.kind = _name  # As the loader does for the name of a file.


def problems(folder: Path, *steps: Backend) -> list[Problem]:
    lines = "".join(f"    - {{backend: {step.kind}}}\n" for step in steps)
    (folder / "v.yaml").write_text(f"variant:\n  compress:\n{lines}")
    found: list[Problem] = []
    source = read_yaml(folder / "v.yaml", found)
    assert source is not None
    check_composition(Checker(source, folder, found), dict(enumerate(steps)))
    return found


HEAD = Weights(only=("lm_head",), skip=())


@pytest.mark.parametrize(
    "steps",
    [
        (Smooth(), Weights(), Inputs()),
        (Weights(), Cache()),
        (Weights(), HEAD),
        (HEAD, Weights(), Inputs(), Cache()),
        (Smooth(), Smooth(), Both(), Cache()),
        (Cache(), Weights()),
        (Inputs(), Weights()),
        (Cache(), Smooth(), Weights()),
    ],
)
def test_steps_that_make_sense_together(tmp_path: Path, steps: tuple[Backend, ...]) -> None:
    assert problems(tmp_path, *steps) == []


@pytest.mark.parametrize(
    ("steps", "line", "fragments"),
    [
        ((Weights(), Weights()), 4, ("weights", "step 1, weights,", "the weights once", "only: and skip")),
        ((Weights(skip=("*.mlp.*",)), Weights(skip=("*.self_attn.*",))), 4, ("the weights once", "only:")),
        ((Weights(), Inputs(), Weights()), 5, ("step 1, weights,", "the weights once")),
        ((Weights(), Both()), 4, ("the weights that step 1", "remove one of the steps")),
        ((Both(), Inputs()), 4, ("the activations that step 1, both,",)),
        ((Inputs(), Inputs(static=True)), 4, ("the activations once",)),
        ((Cache(), Weights(), Cache()), 5, ("the KV cache that step 1, cache,",)),
        ((Cache(only=("a",)), Cache(only=("b",))), 4, ("the KV cache once",)),
        ((Weights(), Smooth()), 4, ("full precision", "step 1, weights,", "move smooth before step 1")),
        ((HEAD, Smooth()), 4, ("preparation steps before",)),
        ((Cache(), Inputs(), Smooth()), 5, ("move smooth before step 2",)),
    ],
)
def test_steps_that_do_not(tmp_path: Path, steps: tuple[Backend, ...], line: int, fragments: tuple[str, ...]) -> None:
    (problem,) = problems(tmp_path, *steps)
    assert problem.line == line
    assert problem.key == f"variant.compress[{line - 3}].backend"
    for fragment in fragments:
        assert fragment in str(problem)


def test_two_reasons_for_one_step_are_one_problem(tmp_path: Path) -> None:
    assert len(problems(tmp_path, Both(), Both())) == 1


@pytest.mark.parametrize(
    ("steps", "calibration", "fragment"),
    [
        ((Smooth(), Weights()), True, "no later step quantizes activations"),
        ((Smooth(), Inputs()), True, ""),
        ((Smooth(), Both()), True, ""),
        ((Inputs(static=True), Weights()), True, "before a later step changes the weights"),
        ((Inputs(), Weights()), False, ""),
        ((Weights(), Inputs(static=True)), True, ""),
        ((Weights(),), True, "no step uses them"),
        ((), False, ""),
    ],
)
def test_what_is_allowed_and_probably_not_meant_is_a_warning(
    steps: tuple[Any, ...], calibration: bool, fragment: str
) -> None:
    notes = remarks(steps, calibration)
    assert [note.level for note in notes] == ["warn"] * bool(fragment)
    assert all(fragment in note.text for note in notes)
