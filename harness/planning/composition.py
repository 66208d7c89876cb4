"""Checks the order and combination of the steps of ``variant.compress``, by what each declares to quantize.

A step that quantizes nothing is a preparation: it moves values between weights and activations, exactly, in full
precision, or it trains; either must come before anything is quantized. Conflicts that only the model shows (patterns
that match the same module) are refused at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.backends import Backend
from harness.planning.checking import Checker
from harness.records import Note
from harness.system.yaml_values import KeyPath

_GRIDS = frozenset({"weights", "activations"})
_WHAT = {"weights": "the weights", "activations": "the activations", "cache": "the KV cache"}


def check_composition(check: Checker, steps: Mapping[int, Backend]) -> None:
    """Add a problem for every step that cannot follow the ones before it, with its line and what to do."""
    done: list[tuple[int, Backend]] = []
    for index, step in sorted(steps.items()):
        path: KeyPath = ("variant", "compress", index, "backend")
        for what in step.puts_on_grid:
            same = (other for other in done if what in other[1].puts_on_grid and _overlap(what, other[1], step))
            if earlier := next(same, None):
                found = f"{step.kind}, which quantizes {_WHAT[what]} that {_name(earlier)} quantizes"
                check.problem(path, found, f"steps that quantize {_WHAT[what]} once", _remedy(what, step))
        if not step.puts_on_grid and (before := next((o for o in done if set(o[1].puts_on_grid) & _GRIDS), None)):
            found = f"{step.kind}, which works in full precision, after {_name(before)} which quantizes"
            expected = "preparation steps before steps that quantize"
            check.problem(path, found, expected, f"move {step.kind} before step {before[0] + 1}")
        done.append((index, step))


def remarks(steps: Sequence[Backend], calibration: bool, training: bool = False) -> tuple[Note, ...]:
    """Notes on combinations that are allowed but probably not intended. calibration, training: whether such documents
    are named."""
    texts = _texts(steps, calibration)
    if training and not any(step.trains for step in steps):
        texts.append("training texts are named, but no step trains")
    return tuple(Note(topic="steps", text=text, level="warn") for text in texts)


def _texts(steps: Sequence[Backend], calibration: bool) -> list[str]:
    texts = []
    for index, step in enumerate(steps):
        later = {what for other in steps[index + 1 :] for what in other.puts_on_grid}
        if not (step.puts_on_grid or step.trains) and "activations" not in later:
            texts.append(
                f"{step.kind} quantizes nothing itself, and no later step quantizes activations, for which it "
                "prepares; alone it only makes weights harder to round"
            )
        if step.puts_on_grid == ("activations",) and step.calibrates and "weights" in later:
            texts.append(
                f"{step.kind} calibrates activation ranges before a later step changes the weights that produce "
                "them; quantize the weights first"
            )
    if calibration and not any(step.calibrates for step in steps):
        texts.append("calibration documents are named, but no step uses them")
    return texts


def _overlap(what: str, first: Backend, second: Backend) -> bool:
    """Whether both steps quantize some module, as far as known without the model: neither is limited by ``only``."""
    return what == "cache" or not (_list_choices(first) or _list_choices(second))


def _list_choices(step: Backend) -> tuple[str, ...]:
    patterns = getattr(step, "only", ())
    return tuple(patterns) if isinstance(patterns, tuple | list) else ()


def _name(step: tuple[int, Backend]) -> str:
    return f"step {step[0] + 1}, {step[1].kind},"


def _remedy(what: str, step: Backend) -> str:
    if what == "cache" or "only" not in type(step).model_fields:
        return "remove one of the steps"
    return "remove one of the steps, or give one of them separate modules with only: and skip those in the other"
