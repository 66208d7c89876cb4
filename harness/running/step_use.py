"""Whether a pass uses what steps changed: nothing could show what a step did to a module that no text runs.

    short pass ─▶ called                    every step acts
               ─▶ read, but never called    steps on weights act, rounding of inputs cannot
               ─▶ neither                   no step acts

Experts are left out: other documents may reach them (see the measure ``coverage``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from harness.backends import Backend, Compressed
from harness.errors import BackendError
from harness.lockstep.idle import Watch
from harness.lockstep.recording import Idle
from harness.models.coverage.untouched import find_roots, leave_experts_out
from harness.modules.inspection import own_tensors
from harness.modules.layer_pairs import list_parents
from harness.system.foreign import contain

TOKENS = 8
_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_MOST = 4


@dataclass(frozen=True)
class StepWork:
    """What one step says it did. weights, inputs: names of the modules that it changed, and whose inputs it rounds."""

    step: Backend
    weights: frozenset[str] = field(default=frozenset())
    inputs: frozenset[str] = field(default=frozenset())

    @staticmethod
    def of(step: Backend, done: Compressed) -> StepWork:
        """What a finished step describes."""
        inputs = {*done.activations, *(stated.module for stated in done.modules if stated.activations)}
        return StepWork(step, frozenset(stated.module for stated in done.modules), frozenset(inputs))


def check_steps_act(model: PreTrainedModel, before: PreTrainedModel | None, works: Sequence[StepWork]) -> None:
    """Raise BackendError naming the step for modules on which it cannot act, because no pass calls or reads them.

    model: after all steps. before: the model that the steps were given, if it still exists: what differs from it was
    changed, whether a step describes it or not.
    """
    try:
        idle = _watch(model)
    except Exception as error:  # noqa: BLE001 - weights of libraries raise anything; another cause stops the pass, too
        _check_replaced(before, works, error)
        return
    unused = leave_experts_out(model, idle.modules)
    uncalled = {*unused, *leave_experts_out(model, idle.uncalled)}
    for work in works:
        if lost := [name for name in unused if name in work.weights | work.inputs]:
            raise BackendError(f"{work.step.kind}: {_explain_unused(model, lost, unused, work.step)}")
        if lost := sorted(work.inputs & uncalled):
            raise BackendError(
                f"{work.step.kind}: {_count(lost)} never called: the model reads the weight and multiplies itself, so "
                f"no input is rounded there; leave it out with {_suggest_skip(work.step, lost)}"
            )
    # What a library holds inside a layer that is called belongs to that layer.
    called = frozenset().union(*(work.weights for work in works)) - set(unused)
    apart = [name for name in unused if not called.intersection(list_parents(name))]
    if before is not None and (lost := [name for name in apart if _differs(model, before, name)]):
        kinds = ", ".join(dict.fromkeys(work.step.kind for work in works))
        raise BackendError(f"{kinds}: {_explain_unused(model, lost, unused, works[-1].step)}")


def _watch(model: PreTrainedModel) -> Idle:
    watch = Watch(model)
    vocabulary = model.config.get_text_config().vocab_size
    ids_1T = torch.arange(1, TOKENS + 1, device=model.device)[None] % vocabulary
    with torch.no_grad(), watch.watching(), contain(f"{type(model).__name__}: its forward pass"):
        model(input_ids=ids_1T, use_cache=False)
    return watch.idle()


def _check_replaced(before: PreTrainedModel | None, works: Sequence[StepWork], error: Exception) -> None:
    """Raise BackendError if a step replaced a weight that the model reads itself, so that it cannot run any more."""
    uncalled = _watch(before).uncalled if before is not None else ()
    for work in works:
        if lost := [name for name in uncalled if name in work.weights]:
            text = (
                f"{work.step.kind}: {_count(lost)} never called: the model reads the weight and multiplies itself, and "
                f"cannot read that of the library ({type(error).__name__}: {str(error)[:200]}); leave it out with "
                f"{_suggest_skip(work.step, lost)}"
            )
            raise BackendError(text) from error


def _explain_unused(model: PreTrainedModel, names: Sequence[str], unused: Sequence[str], step: Backend) -> str:
    roots = [root for root in find_roots(unused, model) if any(f"{name}.".startswith(f"{root}.") for name in names)]
    patterns = [root if root in names else f"{root}.*" for root in roots]
    return (
        f"{_count(names)} changed, but no text runs {'them' if len(names) > 1 else 'it'}, so no measurement can show "
        f"what that does; leave it out with {_suggest_skip(step, patterns)}"
    )


def _count(names: Sequence[str]) -> str:
    """ "2 modules (a.0.b, a.1.b) are"."""
    shown = ", ".join(names[:_MOST]) + (" …" if len(names) > _MOST else "")
    return f"{len(names)} module{'s' if len(names) > 1 else ''} ({shown}) {'are' if len(names) > 1 else 'is'}"


def _suggest_skip(step: Backend, names: Iterable[str]) -> str:
    """The setting that leaves modules out, with what is left out already; layers are joined into one pattern."""
    patterns = dict.fromkeys([*getattr(step, "skip", ()), *(_NUMBER.sub(".*", name) for name in names)])
    return f"skip: [{', '.join(repr(pattern) for pattern in patterns)}]"


def _differs(model: PreTrainedModel, before: PreTrainedModel, name: str) -> bool:
    try:
        own, old = (dict(own_tensors(each.get_submodule(name))) for each in (model, before))
    except AttributeError:
        return True
    return own.keys() != old.keys() or any(not torch.equal(tensor, old[part]) for part, tensor in own.items())
