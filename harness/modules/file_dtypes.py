"""The bytes of plain floats as the files hold them, whatever dtype they were loaded in.

A bfloat16 checkpoint that is computed in float32 still ships bfloat16, so that counting what memory holds would make
every variant look smaller beside it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.records import FLOATS, ModuleFormat


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a weight file. dtype: torch's name for a floating dtype, else that of safetensors."""

    dtype: str
    bytes: int


def state_file_dtypes(modules: Iterable[ModuleFormat], files: Mapping[str, FileTensor]) -> tuple[ModuleFormat, ...]:
    """Modules of plain floats with dtype and bytes of their tensors in the files; the others unchanged.

    A module whose tensors have other names in the files is taken to have the dtype of most bytes of floats there.
    """
    sizes: Counter[str] = Counter()
    for _, tensor in sorted(files.items()):
        sizes[tensor.dtype] += tensor.bytes if tensor.dtype in FLOATS else 0
    usual = max((dtype for dtype in sizes if sizes[dtype]), key=lambda dtype: sizes[dtype], default=None)
    # Grouped once: a mixture with a module for each expert has tens of thousands of modules, and as many tensors.
    inside: defaultdict[str, list[FileTensor]] = defaultdict(list)
    for name, tensor in files.items():
        inside[name.rpartition(".")[0]].append(tensor)
    owned = dict(inside) | {name: [tensor] for name, tensor in files.items()}
    return tuple(_state(module, owned.get(module.module, ()), usual) for module in modules)


def keep_file_dtypes(modules: Iterable[ModuleFormat], before: Sequence[ModuleFormat]) -> tuple[ModuleFormat, ...]:
    """Modules of plain floats with the dtype that they had in the files before other modules were compressed."""
    known = {module.module: module for module in before}
    return tuple(
        _convert(module, origin.format.name) if (origin := known.get(module.module)) and _is_plain(origin) else module
        for module in modules
    )


def _state(module: ModuleFormat, own: Sequence[FileTensor], usual: str | None) -> ModuleFormat:
    """own: the tensors of the module in the files."""
    if not _is_plain(module) or usual is None:
        return module
    if not own or any(tensor.dtype not in FLOATS for tensor in own):
        return _convert(module, usual)
    dtype = max(own, key=lambda tensor: tensor.bytes).dtype
    size = sum(tensor.bytes for tensor in own) if module.stored_bytes else 0
    return _convert(module, dtype).model_copy(update={"stored_bytes": size})


def _is_plain(module: ModuleFormat) -> bool:
    return not module.compressed and module.format.name in FLOATS


def _convert(module: ModuleFormat, dtype: str) -> ModuleFormat:
    """A plain module with its values in another dtype."""
    form = FLOATS[dtype]
    if not _is_plain(module) or not form.bits or not module.format.bits:
        return module
    size = module.stored_bytes * form.bits // module.format.bits
    return module.model_copy(update={"format": form, "stored_bytes": size, "bits_per_weight": float(form.bits)})
