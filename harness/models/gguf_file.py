"""Reads the metadata and tensor types of a GGUF file with the library gguf, without constructing a model.

A file contains its configuration, vocabulary and tensor types, and no code. Legend of names: ``blk.3.ffn_up`` is
llama.cpp's name of a module; a type such as Q4_K is a format with its scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import MissingDependencyError, ModelError
from harness.records import FLOATS, ModuleFormat, NumberFormat
from harness.records.result import Role

if TYPE_CHECKING:
    from gguf import GGUFReader

_FLOATS: Mapping[str, str] = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types of plain numbers, by torch's dtype names."""
_INTEGERS: Mapping[str, tuple[int, int, bool]] = {
    "Q4_0": (4, 32, True),
    "Q4_1": (4, 32, False),
    "Q5_0": (5, 32, True),
    "Q5_1": (5, 32, False),
    "Q8_0": (8, 32, True),
    "Q2_K": (2, 16, False),
    "Q3_K": (3, 16, True),
    "Q4_K": (4, 32, False),
    "Q5_K": (5, 32, False),
    "Q6_K": (6, 16, True),
}
"""Bits, group size, and whether the type is symmetric (a minimum is a zero point).

From the block structures of ggml (ggml-common.h); types that are not listed (codebooks) are only identified by name.
"""
_MXFP4 = NumberFormat(type="float", bits=4, element="MXFP4", symmetric=True, granularity="group", group_size=32)
_UNUSED = 5
"""Token type of vocabulary padding (llama.cpp's LLAMA_TOKEN_TYPE_UNUSED)."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor. shape: in torch's order, [O, I]; size: its bytes in the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    size: int

    @property
    def values(self) -> int:
        """Number of elements."""
        count = 1
        for each in self.shape:
            count *= each
        return count

    @property
    def module(self) -> str:
        """llama.cpp's name of the module it belongs to."""
        return self.name.rpartition(".")[0] if self.name.endswith((".weight", ".bias")) else self.name


@dataclass(frozen=True)
class GgufFile:
    """A file's architecture, scalar metadata, vocabulary and tensors."""

    path: Path
    architecture: str
    values: Mapping[str, Any]
    tokens: tuple[str, ...]
    unused: frozenset[int]
    """Ids of tokens that are vocabulary padding."""
    tensors: tuple[GgufTensor, ...]

    def of_architecture(self, key: str) -> Any:
        """A metadata value of the file's architecture (``context_length``); None if it is missing."""
        return self.values.get(f"{self.architecture}.{key}")

    @property
    def types(self) -> tuple[str, ...]:
        """The tensor types in the file, the one with most values first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            counts[tensor.type] = counts.get(tensor.type, 0) + tensor.values
        return tuple(sorted(counts, key=lambda name: (-counts[name], name)))


def read_gguf(path: Path) -> GgufFile:
    """Read everything but the values of the tensors.

    Raises MissingDependencyError without the library, and ModelError for a file that is damaged, truncated, of types
    that the library does not know, or one of several parts.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingDependencyError("gguf", str(path), 'pip install "lm-shipcheck[gguf]"') from error
    try:
        reader = GGUFReader(path)
        content = _content(path, reader)
    except (ValueError, OSError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        # What numpy says of a map that ends too early, or of sizes that were never written so.
        raise ModelError(
            f"{path}: damaged, truncated, or not a GGUF file that the library gguf can read ({error}); "
            "download it again, or install a newer gguf"
        ) from error
    if (parts := content.values.get("split.count", 1)) > 1:
        raise ModelError(f"{path}: one of {parts} parts of a model; join them first (llama-gguf-split --merge)")
    if not content.tensors:
        raise ModelError(f"{path}: contains only a vocabulary and no tensors; expected a model")
    return content


def format_of_type(name: str) -> NumberFormat:
    """The number format of a GGUF type (``Q4_K``)."""
    if name in _FLOATS:
        return FLOATS[_FLOATS[name]]
    if name not in _INTEGERS:
        return _MXFP4 if name == "MXFP4" else NumberFormat(type="other", element=name)
    bits, size, symmetric = _INTEGERS[name]
    return NumberFormat(type="int", bits=bits, element=name, symmetric=symmetric, granularity="group", group_size=size)


def module_formats_of(found: GgufFile) -> tuple[ModuleFormat, ...]:
    """How each module is stored, by llama.cpp's names in the order of the file, if computed in the stored format."""
    grouped: dict[str, list[GgufTensor]] = {}
    for tensor in found.tensors:
        grouped.setdefault(tensor.module, []).append(tensor)
    return tuple(module_format(name, "gguf", members) for name, members in grouped.items())


def module_format(name: str, type_name: str, tensors: Sequence[GgufTensor], held: str = "") -> ModuleFormat:
    """The format of one module, that of its largest tensor. held: the dtype to which its values were converted, if
    any."""
    weights = [tensor for tensor in tensors if not tensor.name.endswith(".bias")] or list(tensors)
    main = max(weights, key=lambda tensor: tensor.values)
    form = format_of_type(main.type)
    return ModuleFormat(
        module=name,
        type=type_name,
        parameters=sum(tensor.values for tensor in tensors),
        stored_bytes=sum(tensor.size for tensor in tensors),
        bits_per_weight=8 * sum(tensor.size for tensor in weights) / max(1, sum(tensor.values for tensor in weights)),
        format=form,
        kernel="simulated" if held and held != form.name else "real",
        backend="" if form.full_precision else "gguf",
        role=_role(main),
    )


def vocabulary_difference(found: GgufFile, tokens: Sequence[str | None]) -> str:
    """The first difference between a file's vocabulary and ``tokens`` (by id); empty if they are the same except for
    padding."""
    for index, token in enumerate(tokens):
        own = found.tokens[index] if index < len(found.tokens) else None
        if token is not None and own != token and index not in found.unused:
            there = "nothing" if own is None else repr(own)
            return f"the id {index} is {there} in the file and {token!r} in the reference"
    more = [index for index in range(len(tokens), len(found.tokens)) if index not in found.unused]
    return f"the file has {len(more)} tokens more, {found.tokens[more[0]]!r} first" if more else ""


def _content(path: Path, reader: GGUFReader) -> GgufFile:
    single = {name: field for name, field in reader.fields.items() if field.types and field.types[0].name != "ARRAY"}
    values = {name: field.contents() for name, field in single.items()}
    tokens, types = reader.get_field("tokenizer.ggml.tokens"), reader.get_field("tokenizer.ggml.token_type")
    kinds = types.contents() if types else []
    return GgufFile(
        path=path,
        architecture=str(values["general.architecture"]),
        values=values,
        tokens=tuple(tokens.contents()) if tokens else (),
        unused=frozenset(index for index, kind in enumerate(kinds) if kind == _UNUSED),
        tensors=tuple(
            GgufTensor(each.name, each.tensor_type.name, tuple(reversed(each.shape.tolist())), int(each.n_bytes))
            for each in reader.tensors
        ),
    )


def _role(tensor: GgufTensor) -> Role:
    module = tensor.module
    if module.startswith("token_embd"):
        return "embedding"
    if module == "output":
        return "head"
    if "norm" in module:
        return "norm"
    return "linear" if len(tensor.shape) > 1 else "other"
