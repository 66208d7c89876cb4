"""Says which modules no text runs and which tensors no class reads, with their share, and whether the sides differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from harness.models.coverage.parts import ModelPart, compare_part, find_counterparts, list_parts
from harness.models.loaded import LoadedModel
from harness.modules.experts import find_experts
from harness.modules.inspection import own_tensors
from harness.records import Note

_MOST = 5


def note_untouched(reference: LoadedModel, variant: LoadedModel, idle: Sequence[Sequence[str]]) -> Iterator[Note]:
    """A note of what took no part on the variant's side, and of what of it is not the reference's.

    idle: modules that no text runs, of the reference and of the variant. Experts are left out: other documents may
    reach them (see the measure ``coverage``).
    """
    if variant.language_model.modules is None:
        text = (
            f"{variant.name}: its engine keeps its weights to itself, so nothing shows damage or missing parts where "
            "no document reaches"
        )
        yield Note(topic="untouched", text=text, level="warn")
        return
    before, after = (_parts(side, names) for side, names in zip((reference, variant), idle, strict=True))
    if after:
        yield _note_share(variant, after, [part for part in after if bool(compare_part(part, reference, variant)[0])])
    known = find_counterparts(before, variant)
    if lost := [part for part in before if part.name not in known]:
        text = f"{variant.name}: its files lack what no text runs of the reference: {describe_parts(reference, lost)}"
        yield Note(topic="untouched", text=text, level="warn")


def describe_parts(side: LoadedModel, parts: Sequence[ModelPart]) -> str:
    """ "model.vision_tower (24 modules), mtp (2 tensors in the files)"."""
    modules = [part.name for part in parts if part.kind == "module"]
    roots = list(find_roots(modules, side.language_model.modules)) if side.language_model.modules else []
    files = [part.name for part in parts if part.kind == "unread"]
    texts = [_count(root, [name for name in modules if _is_in(name, root)], "module") for root in roots]
    for root in dict.fromkeys(name.partition(".")[0] for name in files):
        texts.append(_count(root, [name for name in files if _is_in(name, root)], "tensor", " in the files"))
    rest = f" and {len(texts) - _MOST} more" if len(texts) > _MOST else ""
    return ", ".join(texts[:_MOST]) + rest


def total(side: LoadedModel) -> tuple[int, int]:
    """Parameters and stored bytes of a side, with the tensors that its class leaves in the files."""
    modules, unread = side.identity.modules, side.unread
    parameters = sum(module.parameters for module in modules) + sum(each.values for each in unread)
    return parameters, sum(module.stored_bytes for module in modules) + sum(each.bytes for each in unread)


def find_roots(idle: Sequence[str], model: nn.Module) -> Iterator[str]:
    """The outermost modules of which nothing that stores tensors runs: "model.vision_tower" for all that is in it."""
    names = set(idle)
    running = [name for name, module in model.named_modules() if name not in names and any(own_tensors(module))]
    busy = {path for name in running for path in _paths(name)}
    yield from dict.fromkeys(next((path for path in _paths(name) if path not in busy), name) for name in idle)


def _paths(name: str) -> list[str]:
    """A module and all around it, the outermost first: "a", "a.b", "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def leave_experts_out(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The names of modules that are not inside a mixture of experts."""
    experts = tuple(f"{each.module}." for each in find_experts(model))
    return [name for name in names if not name.startswith(experts)]


def _parts(side: LoadedModel, idle: Sequence[str]) -> list[ModelPart]:
    model = side.language_model.modules
    names = idle if model is None else leave_experts_out(model, idle)
    return [part for part in list_parts(side, names, ()) if part.kind != "experts"]


def _note_share(variant: LoadedModel, parts: Sequence[ModelPart], changed: Sequence[ModelPart]) -> Note:
    parameters, size = total(variant)
    text = (
        f"{variant.name}: took no part in any measurement, because no text runs it: {describe_parts(variant, parts)}; "
        f"{sum(part.parameters for part in parts) / max(1, parameters):.1%} of its parameters and "
        f"{sum(part.bytes for part in parts) / max(1, size):.1%} of its bytes"
    )
    if not changed:
        return Note(topic="untouched", text=f"{text}; equal on both sides")
    text += "; of it, these differ from the reference and nothing shows what that does: "
    return Note(topic="untouched", text=text + describe_parts(variant, changed), level="warn")


def _is_in(name: str, root: str) -> bool:
    return name == root or name.startswith(f"{root}.")


def _count(root: str, names: Sequence[str], what: str, where: str = "") -> str:
    return f"{root} ({len(names)} {what}{'s' if len(names) > 1 else ''}{where})"
