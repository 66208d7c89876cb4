"""Loads GPTQ and AWQ folders without their kernel library: codes are unpacked and dequantized to floats.

    words of 32 bits ─▶ codes, zero points ─▶ (code − zero point) · scale ─▶ floats ─▶ transformers

Values are those of the files and bytes are counted as in the files; speed is that of floats, so the kernels count as
simulated. Both formats store a layer as ``qweight``, ``qzeros`` and ``scales``, with as many rows as there are inputs
or groups of inputs; the number of bits per code follows from the sizes.

gptq, gptq_v2: codes are packed along the inputs, zero points along the outputs; each bit string runs on over the words
of 32 codes (3 bits: over three words). ``g_idx`` says which group an input belongs to. Files of the first version keep
every zero point less one (AutoGPTQ wrote them so). Of a zero point of 0 that leaves all ones, and those who write such
files borrow from the next zero point in the word; as GPTQModel does, one is added to whole words, which undoes it.
awq, gemm: both are packed along the outputs, eight codes of 4 bits in a word, in the order 0 2 4 6 1 3 5 7.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.errors import MissingDependencyError, ModelError
from harness.models.weight_files import locate_config, read_json, weight_files
from harness.modules.linears import Linear, weight_of
from harness.records import ModuleFormat, Note, NumberFormat

_LAYOUTS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
METHODS = tuple(_LAYOUTS)
INSTALL = "pip install gptqmodel optimum"
PARTS = ("qweight", "qzeros", "scales", "g_idx")
WIDTHS = (2, 3, 4, 8)
_BLOCK = 32
"""Code widths that fill whole words."""
_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WITHIN_WORD = (0, 4, 1, 5, 2, 6, 3, 7)
"""AWQ: position in a word of each of eight neighbours."""


@dataclass(frozen=True)
class PackedLayout:
    """How a folder packs codes.

    less: what was subtracted from each zero point before it was stored. by_activation: inputs were quantized in the
    order of their activations (``desc_act``), so that only ``g_idx`` says which group an input belongs to. declared:
    the quantization config.
    """

    method: str
    symmetric: bool
    less: int = 0
    by_activation: bool = False
    declared: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Unpacked:
    """A dequantized layer. weight: [O, I] in float32. wrapped: zero points that implementations read differently.

    centred: whether every zero point is the middle of the codes, so that the format is symmetric.
    """

    weight: Tensor
    format: ModuleFormat
    wrapped: int
    centred: bool


@dataclass(frozen=True)
class Contents:
    """The dequantized content of a folder: its packed layers by name, and every other tensor by its own name.

    model: the model that has these layers; it may be without weights.
    """

    model: nn.Module
    layers: Mapping[str, Unpacked]
    others: Mapping[str, Tensor]
    layout: PackedLayout

    def state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All weights by parameter name, the dequantized ones in ``dtype``."""
        unpacked = dict(self.others)
        for name, layer in self.layers.items():
            sideways = isinstance(self.model.get_submodule(name), Conv1D)
            weight = layer.weight.T if sideways else layer.weight
            unpacked[f"{name}.weight"] = weight.to(dtype).contiguous()
        return unpacked

    def notes(self, name: str) -> tuple[Note, ...]:
        """Notes for the reader of the report. name: the model's."""
        methods = ", ".join(sorted({layer.format.backend for layer in self.layers.values()}))
        text = (
            f"{name}: its packed weights ({methods}) are dequantized to floats: quality and bytes are "
            f"those of the files, speed is that of floats; {INSTALL} brings kernels"
        )
        notes = [Note(topic="packed weights", text=text)]
        if wrapped := sum(layer.wrapped for layer in self.layers.values()):
            text = (
                f"{name}: {wrapped} zero points of its files, of the first version of GPTQ, are stored as all ones; "
                "programs read those and their neighbours differently, and here they are read as GPTQModel does"
            )
            notes.append(Note(topic="zero points", text=text, level="warn"))
        return (*notes, *self._contradictions(name))

    def _contradictions(self, name: str) -> Iterator[Note]:
        """What config.json says otherwise than the files hold it. Values here are those of the files."""
        layers, topic = self.layers, "quantization config"
        off_centre = [each for each, layer in layers.items() if not layer.centred]
        if self.layout.symmetric and off_centre:
            text = (
                f"{name}: config.json says that the weights are symmetric (sym), but {len(off_centre)} of "
                f"{len(layers)} layers hold other zero points, {off_centre[0]} first: kernels for symmetric weights "
                "never read these, and compute something else"
            )
            yield Note(topic=topic, text=text, level="warn")
        if not self.layout.symmetric and not off_centre:
            text = f"{name}: config.json says that the weights are asymmetric (sym), but all zero points are the middle"
            yield Note(topic=topic, text=text)
        if self.layout.by_activation and not any(layer.format.format.act_order for layer in layers.values()):
            text = f"{name}: config.json says desc_act: true, but the inputs of every layer are in their own order"
            yield Note(topic=topic, text=text)


def unpack_folder(folder: Path, model: nn.Module) -> Contents:
    """Read and unpack everything in the weight files of a folder. model: has the layers; only their sizes are used.

    Raises MissingDependencyError for a layout that only the library reads, ModelError naming a layer that does not fit.
    """
    layout = read_layout(folder)
    parts, others = defaultdict[str, dict[str, Tensor]](dict), dict[str, Tensor]()
    for path in weight_files(folder, read_json(folder / "config.json")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                layer, _, part = name.rpartition(".")
                (parts[layer] if part in PARTS else others)[part if part in PARTS else name] = file.get_tensor(name)
    modules, layers = dict(model.named_modules()), {}
    for name in list(parts):
        if name not in modules:
            raise ModelError(
                f"{folder}: {name} is packed ({layout.method}), and the model has no such separate layer "
                f"(stacked experts, for example); the library unpacks it: {INSTALL}"
            )
        if f"{name}.weight" in others:
            raise ModelError(f"{folder}: {name} has both a weight and packed codes, which is ambiguous")
        layers[name] = unpack_layer(name, modules[name], parts.pop(name), layout, others.get(f"{name}.bias"))
    if not layers:
        raise ModelError(f"{folder}: config.json declares {layout.method}, but no layer in its files is packed")
    for name, tensor in others.items():
        if name.endswith(".weight") and tensor.dtype not in _PLAIN:
            raise ModelError(
                f"{folder}: {name} is stored as {tensor.dtype}; expected floats for tensors that are not packed"
            )
    return Contents(model, layers, others, layout)


def read_layout(folder: Path) -> PackedLayout:
    """How the codes of a folder are packed, by its config.json.

    Raises MissingDependencyError for a kernel-specific layout that only its library reads.
    """
    said, _ = locate_config(read_json(folder / "config.json"))
    method = str(said.get("quant_method"))
    if method == "awq":
        layout = str(said.get("version") or said.get("format") or "gemm").lower()
    else:
        layout = str(said.get("checkpoint_format") or said.get("format") or "gptq").lower()
    if layout not in _LAYOUTS[method]:
        raise MissingDependencyError("gptqmodel", f"{folder} ({method} in the layout {layout})", INSTALL)
    if method == "awq":
        return PackedLayout(method, symmetric=not said.get("zero_point", True), declared=said)
    by_activation = bool(said.get("desc_act")) and not said.get("static_groups")
    return PackedLayout(method, bool(said.get("sym", True)), int(layout == "gptq"), by_activation, said)


def unpack_layer(
    name: str, module: nn.Module, parts: Mapping[str, Tensor], layout: PackedLayout, bias: Tensor | None = None
) -> Unpacked:
    """Dequantize the weight of one layer. module: the layer, of which only sizes are used.

    parts: its packed tensors by the last part of their name. bias: as in the file, to count its bytes. Raises
    ModelError naming the layer if they are inconsistent.
    """
    if not isinstance(module, Linear):
        raise ModelError(
            f"{name}: its weight is packed ({layout.method}), but the model has a {type(module).__name__} there"
        )
    if lacking := [part for part in PARTS[:3] if part not in parts]:
        raise ModelError(f"{name}: its weight is packed ({layout.method}) without {' and '.join(lacking)}")
    outputs, inputs = weight_of(module).shape
    words, zeros, scales_GO = parts["qweight"], parts["qzeros"], parts["scales"].float()
    bits, groups = _bits_and_groups(name, parts, layout, outputs, inputs)
    _check_declared(name, layout.declared, bits, groups, inputs)
    if layout.method == "gptq":
        codes_IO, zeros_GO = _fields(words.T, bits, inputs).T, _fields(zeros, bits, outputs)
    else:
        codes_IO, zeros_GO = _reorder(_fields(words, bits, outputs)), _reorder(_fields(zeros, bits, outputs))
    wrapped = 0
    if layout.less:
        wrapped = int((zeros_GO == 2**bits - 1).sum())
        zeros_GO = _increment(zeros, bits, outputs)
    if layout.by_activation and groups > 1 and "g_idx" not in parts:
        raise ModelError(
            f"{name}: config.json says desc_act: true, so that only g_idx says which of {groups} groups an input "
            "belongs to, and the file has no g_idx; export the model again, or write desc_act: false if that is true"
        )
    size = -(-inputs // groups)
    group_I = parts["g_idx"].long() if "g_idx" in parts else torch.arange(inputs) // size
    if group_I.shape != (inputs,) or not 0 <= int(group_I.min()) <= int(group_I.max()) < groups:
        raise ModelError(
            f"{name}: g_idx names groups that do not exist, or has not one entry for each of {inputs} inputs"
        )
    ordered = bool((group_I == torch.arange(inputs) // size).all())
    weight_IO = (codes_IO - zeros_GO[group_I]) * scales_GO[group_I]
    stored = sum(tensor.numel() * tensor.element_size() for tensor in parts.values())
    stated = ModuleFormat(
        module=name,
        type=type(module).__name__,
        parameters=outputs * inputs + (0 if bias is None else bias.numel()),
        stored_bytes=stored + (0 if bias is None else bias.numel() * bias.element_size()),
        bits_per_weight=8 * stored / (outputs * inputs),
        format=NumberFormat(
            type="int",
            bits=bits,
            symmetric=layout.symmetric,
            granularity="channel" if groups == 1 else "group",
            group_size=None if groups == 1 else size,
            scales="float",
            act_order=not ordered,
        ),
        kernel="simulated",
        backend=layout.method,
    )
    return Unpacked(weight_IO.T, stated, wrapped, centred=bool((zeros_GO == 2 ** (bits - 1)).all()))


def _check_declared(name: str, declared: Mapping[str, Any], bits: int, groups: int, inputs: int) -> None:
    """Raise ModelError if the config states other bits or another group size than a layer holds.

    Programs that unpack by the config, as kernels do, would read other weights than those that were saved.
    """
    said = dict(declared)
    for pattern, own in (declared.get("dynamic") or {}).items():  # GPTQModel: other settings for some layers.
        if isinstance(own, dict) and re.match(pattern.removeprefix("+:"), name):
            said |= own
    stated_bits = said.get("bits", said.get("w_bit"))
    size = said.get("group_size", said.get("q_group_size"))
    if isinstance(stated_bits, int) and stated_bits != bits:
        raise ModelError(
            f"{name}: config.json says bits: {stated_bits}, but its codes in the file have {bits}; programs that "
            "follow the config compute with other weights: correct config.json, or export the model again"
        )
    if isinstance(size, int) and groups != (1 if size <= 0 else -(-inputs // size)):
        raise ModelError(
            f"{name}: config.json says group_size: {size}, but the file holds scales of {groups} groups for {inputs} "
            f"inputs ({-(-inputs // groups)} each); programs that follow the config apply them to other weights: "
            "correct config.json, or export the model again"
        )


def _bits_and_groups(
    name: str, parts: Mapping[str, Tensor], layout: PackedLayout, outputs: int, inputs: int
) -> tuple[int, int]:
    """Bits per code and number of groups, by the sizes of the tensors. Raises ModelError where they contradict."""
    words, zeros, scales_GO = parts["qweight"], parts["qzeros"], parts["scales"]
    bits, rest = divmod(words.numel() * _BLOCK, outputs * inputs)
    groups = scales_GO.shape[0]
    packed_size = bits * inputs // _BLOCK if layout.method == "gptq" else inputs
    fits = (
        bits in WIDTHS
        and rest == 0
        and words.dtype == zeros.dtype == torch.int32
        and words.shape[0] == packed_size
        and tuple(scales_GO.shape) == (groups, outputs)
        and tuple(zeros.shape) == (groups, -(-outputs * bits // _BLOCK))
        and (layout.method == "gptq" or bits == 4)
    )
    if not fits:
        shapes = ", ".join(f"{part} {list(tensor.shape)} {tensor.dtype}" for part, tensor in parts.items())
        raise ModelError(
            f"{name}: its packed weight does not fit a layer of {outputs} outputs and {inputs} inputs: found {shapes}; "
            f"if the folder is complete, its layout is not the usual one: {INSTALL}"
        )
    return bits, groups


def _fields(words_NM: Tensor, bits: int, count: int) -> Tensor:
    """The first ``count`` unsigned fields of ``bits`` bits in every row, lowest first: int64 [N, count]."""
    padded = nn.functional.pad(words_NM.long() & (2**32 - 1), (0, -words_NM.shape[1] % bits))
    blocks = padded.reshape(len(padded), -1, bits)
    start = torch.arange(_BLOCK, device=words_NM.device) * bits
    word = start // 32
    pairs = blocks[..., word] | (blocks[..., (word + 1).clamp(max=bits - 1)] << 32)
    fields: Tensor = (pairs >> (start % 32)) & (2**bits - 1)
    return fields.flatten(1)[:, :count]


def _increment(words_NM: Tensor, bits: int, count: int) -> Tensor:
    """The fields of every row after one was added to each: to whole words, or to fields that run on over words."""
    if _BLOCK % bits:
        return (_fields(words_NM, bits, count) + 1) % (1 << bits)
    return _fields(words_NM + sum(1 << place for place in range(0, _BLOCK, bits)), bits, count)


def _reorder(fields_NO: Tensor) -> Tensor:
    """Fields of AWQ in the order of the outputs that they belong to."""
    words = fields_NO.reshape(len(fields_NO), -1, len(_WITHIN_WORD))
    return words[..., list(_WITHIN_WORD)].flatten(1)
