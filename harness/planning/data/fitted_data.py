"""The data to which steps fit a variant, ``calibration`` and ``training``: read, and compared with what steps need and
with what the variant is judged on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.backends import Backend
from harness.planning.checking import Checker
from harness.planning.suite_file import Suite, read_documents_spec, source_name
from harness.records import CalibrationSpec, TrainingSpec
from harness.system.yaml_values import KeyPath

Key = Literal["calibration", "training"]


@dataclass(frozen=True)
class _Need:
    """What a step needs of one section. what: the documents, found: of a step without them."""

    needs: Callable[[Backend], bool]
    what: str
    found: str
    hint: str


_NEEDS: Mapping[Key, _Need] = {
    "calibration": _Need(
        lambda step: step.calibrates,
        "calibration documents",
        "no calibration",
        "add for example calibration: {data: pocket-calibration, documents: 64, tokens: 256}",
    ),
    "training": _Need(
        lambda step: step.trains,
        "texts to train on",
        "no training data",
        "add for example training: {data: pocket-train, documents: 256, steps: 300}",
    ),
}


@dataclass(frozen=True)
class FittedData:
    """Both sections, as far as they are without mistakes."""

    calibration: CalibrationSpec | None
    training: TrainingSpec | None


def read_fitted_data(
    check: Checker, content: Mapping[str, Any], steps: Mapping[int, Backend], suites: Iterable[Suite | None]
) -> FittedData:
    """Both sections. Notes problems: of themselves, of steps that need what is missing, and of texts on which the
    variant is judged."""
    calibration = training = None
    if content.get("calibration") is not None:
        calibration = read_documents_spec(check, CalibrationSpec, content["calibration"], "calibration")
    if content.get("training") is not None:
        training = read_documents_spec(check, TrainingSpec, content["training"], "training")
    judged = tuple(suites)
    both: dict[Key, CalibrationSpec | TrainingSpec | None] = {"calibration": calibration, "training": training}
    for key, spec in both.items():
        _check_given(check, key, content.get(key) is not None, steps)
        if spec is not None and any(_NEEDS[key].needs(step) for step in steps.values()):
            _check_contamination(check, key, spec, judged)
    if training is not None:
        _check_batches(check, training, steps)
    return FittedData(calibration, training)


def _check_given(check: Checker, key: Key, given: bool, steps: Mapping[int, Backend]) -> None:
    need = _NEEDS[key]
    for index, step in steps.items():
        if need.needs(step) and not given:
            path: KeyPath = ("variant", "compress", index, "backend")
            check.problem(path, f"{step.kind}, but {need.found}", need.what, need.hint)


def _check_contamination(
    check: Checker, key: Key, spec: CalibrationSpec | TrainingSpec, suites: Iterable[Suite | None]
) -> None:
    """Refuse to judge a model on the documents to which it was fitted."""
    for suite in suites:
        judged = suite.documents if suite else None
        if suite and judged and (judged.data, judged.seed) == (spec.data, spec.seed):
            found = f"{source_name(spec.data)}, on which the suite {suite.name} measures"
            check.problem((key, "data"), found, "documents on which the variant is not judged")


def _check_batches(check: Checker, training: TrainingSpec, steps: Mapping[int, Backend]) -> None:
    """Note a batch larger than the data."""
    for index, step in steps.items():
        batch = getattr(step, "batch", 0) if step.trains else 0
        if batch > training.documents:
            expected = f"at most the {training.documents} documents of training:"
            check.problem(("variant", "compress", index, "batch"), f"a batch of {batch} documents", expected)
