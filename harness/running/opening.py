"""Decides once for a run whether texts begin with BOS, by the reference's tokenizer, and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from harness.data.encoding import follow_bos
from harness.planning.specs import Plan
from harness.records import CalibrationSpec, DocumentsSpec, Note, TrainingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

S = TypeVar("S", DocumentsSpec, CalibrationSpec, TrainingSpec)


def settle_openings(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> Plan:
    """The plan with ``bos`` as it is done: true or false, for the documents of every suite, calibration and training.

    A tokenizer without a BOS token belongs to a family that uses none, so ``bos: true`` becomes false there.
    """
    return _replace_texts(plan, lambda spec: spec and _settle(spec, tokenizer))


def read_openings(settled: Plan) -> tuple[bool, ...]:
    """What ``settle_openings`` decided, for ``apply_openings`` where there is no tokenizer."""
    return tuple(bool(spec.bos) for spec in _list_texts(settled))


def apply_openings(plan: Plan, openings: tuple[bool, ...]) -> Plan:
    """The plan as ``settle_openings`` left it when it decided ``openings``."""
    decided = iter(openings)

    def settle(spec: S | None) -> S | None:
        return spec and spec.model_copy(update={"bos": next(decided)})

    return _replace_texts(plan, settle)


def note_openings(asked: Plan, tokenizer: PreTrainedTokenizerBase) -> Iterator[Note]:
    """What ``settle_openings`` decided for each suite whose ``bos`` is ``auto`` or cannot be followed."""
    for suite in asked.suites:
        if suite.documents is None:
            continue
        bos, used = suite.documents.bos, _settle(suite.documents, tokenizer).bos
        token = tokenizer.bos_token
        if bos == "auto":
            does = f"begin with BOS ({token}), as" if used else "begin without BOS, as"
            why = "puts it before texts" if used else "has none" if token is None else f"does not put its {token} there"
            text = f"suite {suite.name}: documents {does} the reference's tokenizer {why} (bos: auto)"
            yield Note(topic="BOS", text=text)
        elif bos != used:
            text = (
                f"suite {suite.name}: documents begin without BOS: {suite.source} has bos: true, but the reference's "
                "tokenizer has no BOS token; write bos: auto"
            )
            yield Note(topic="BOS", text=text, level="warn")


def _list_texts(plan: Plan) -> list[DocumentsSpec | CalibrationSpec | TrainingSpec]:
    found = [*(suite.documents for suite in plan.suites), plan.calibration, plan.training]
    return [spec for spec in found if spec is not None]


def _replace_texts(plan: Plan, settle: Callable[[Any], Any]) -> Plan:
    """The plan with all that says how texts are read replaced, in the order of ``_list_texts``."""
    suites = [suite.model_copy(update={"documents": settle(suite.documents)}) for suite in plan.suites]
    calibration, training = settle(plan.calibration), settle(plan.training)
    return plan.model_copy(update={"suites": tuple(suites), "calibration": calibration, "training": training})


def _settle(spec: S, tokenizer: PreTrainedTokenizerBase) -> S:
    bos = follow_bos(spec.bos, tokenizer) and isinstance(tokenizer.bos_token_id, int)
    return spec.model_copy(update={"bos": bos})
