"""Verifies the weight files of a model folder: complete, not truncated, and no quantized codes declared as weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.errors import ModelError
from harness.modules.file_dtypes import FileTensor
from harness.modules.non_finite import NonFinite, describe

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
INDEX = "model.safetensors.index.json"
CODE_DTYPES = re.compile(r"F8_.*|F4.*|F6_.*|I\d+|U\d+")
"""safetensors dtypes that contain codes rather than weights, if used for a weight."""


FLOAT_NAMES: Mapping[str, str] = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""torch's names of the floating dtypes of safetensors."""


@dataclass(frozen=True)
class UnreadTensor:
    """A tensor of the files that the class of the model leaves there, as heads for further tokens are.

    values: how many it holds. sha256: of its dtype, shape and bytes. non_finite: where it is NaN or infinite.
    """

    name: str
    path: Path
    values: int
    bytes: int
    sha256: str
    non_finite: NonFinite | None


@dataclass(frozen=True)
class WeightHeaders:
    """Content of the weight files' headers: the dtype of every tensor, by name, and the largest dimension.

    tensors: dtype, by torch's name for floats, and bytes of every tensor.
    """

    dtypes: Mapping[str, str]
    largest: int = 0
    tensors: Mapping[str, FileTensor] = field(default_factory=dict)

    def floating_dtypes(self) -> tuple[str, ...]:
        """The floating-point dtypes that occur, sorted, by torch's names."""
        return tuple(sorted({FLOAT_NAMES[dtype] for dtype in self.dtypes.values() if dtype in FLOAT_NAMES}))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises ModelError if it is missing, damaged or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent}: has no {path.name}, so it is not a model folder of transformers") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}, expected an object")
    return content


def locate_config(config: Mapping[str, Any]) -> tuple[Any, str]:
    """The quantization config in the content of a config.json, and where in it; None if there is none.

    As transformers reads it: at the top, or in the configuration of the language model inside a wrapper.
    """
    for name in ("quantization_config", "compression_config"):
        if config.get(name):
            return config[name], name
    for part in ("text_config", "decoder", "generator"):
        inner = config.get(part)
        if isinstance(inner, dict) and inner.get("quantization_config"):
            return inner["quantization_config"], f"{part}.quantization_config"
    return None, ""


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The safetensors files that contain the weights; raises ModelError if one, or all, are missing."""
    declared = config.get("transformers_weights")
    names = [declared] if isinstance(declared, str) else ["model.safetensors", INDEX]
    first = next((folder / name for name in names if _is_weights_name(name) and (folder / name).is_file()), None)
    if first is None:
        raise ModelError(_explain_no_weights(folder, declared))
    if first.suffix == ".safetensors":
        return [first]
    shards = read_json(first).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{first}: weight_map does not say which file holds which tensor")
    files = [folder / name for name in sorted(set(shards.values()))]
    for path in files:
        if path.parent != folder or path.suffix != ".safetensors" or not path.is_file():
            raise ModelError(
                f"{first}: names the weight file {path.name!r}, which is not a .safetensors file in {folder}"
            )
    return files


def read_headers(files: Sequence[Path]) -> WeightHeaders:
    """Read the headers of all files; raises ModelError as check_safetensors does."""
    found = [tensor for path in files for tensor in check_safetensors(path)]
    return WeightHeaders(
        {name: dtype for name, dtype, _ in found},
        max((max(shape, default=0) for *_, shape in found), default=0),
        {name: FileTensor(FLOAT_NAMES.get(dtype, dtype), stored_size(dtype, shape)) for name, dtype, shape in found},
    )


def stored_size(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of a safetensors dtype, whose name begins its number of bits (8 where it has none)."""
    bits = int((re.findall(r"\d+", dtype) or ["8"])[0])
    return -(-prod(shape) * bits // 8)


def check_safetensors(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, dtype and shape of every tensor in one file; raises ModelError if its header or size is wrong."""
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_slice(name)
                yield name, tensor.get_dtype(), tensor.get_shape()
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged or truncated safetensors file: {error}; fetch it again") from error


def read_unread(files: Sequence[Path], names: Iterable[str]) -> tuple[UnreadTensor, ...]:
    """The tensors of these names, each read once. files: verified ones."""
    wanted, found = set(names), []
    for path in files if wanted else ():
        with safe_open(path, framework="pt") as file:
            for name in sorted(wanted.intersection(file.keys())):
                found.append(_read_unread(name, path, file.get_tensor(name)))
    return tuple(sorted(found, key=lambda each: each.name))


def read_tensor(unread: UnreadTensor) -> Tensor:
    """The values of a tensor that the class leaves in the files."""
    with safe_open(unread.path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(unread.name)
        return tensor


def _read_unread(name: str, path: Path, tensor: Tensor) -> UnreadTensor:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    size = tensor.numel() * tensor.element_size()
    return UnreadTensor(name, path, tensor.numel(), size, digest.hexdigest(), describe(name, tensor))


def check_no_hidden_codes(folder: Path, weights: WeightHeaders) -> None:
    """Raise ModelError if weights are integers or 8-bit floats and the config declares no quantization.

    transformers would convert the codes to floats and drop their scales.
    """
    codes = [name for name, dtype in weights.dtypes.items() if name.endswith("weight") and CODE_DTYPES.fullmatch(dtype)]
    if codes:
        raise ModelError(
            f"{folder}: {codes[0]} (and {len(codes) - 1} more) is stored as {weights.dtypes[codes[0]]}, but "
            "config.json has no quantization_config to say what the codes mean; export the model again with "
            "one"
        )


def _is_weights_name(name: str) -> bool:
    """Whether this is a plain file name of a safetensors file or of an index of them."""
    return Path(name).name == name and name.endswith((".safetensors", ".safetensors.index.json"))


def _explain_no_weights(folder: Path, declared: object) -> str:
    if isinstance(declared, str):
        return f"{folder}: config.json names the weight file {declared!r}, which is not a safetensors file in it"
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return (
            f"{folder}: holds {', '.join(pickles[:4])} but no safetensors file; pickles can run code and are "
            "not loaded. Convert in a sandbox: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    if gguf := sorted(path.name for path in folder.glob("*.gguf")):
        return f"{folder}: holds {gguf[0]} but no safetensors file; name it in the YAML: file: {gguf[0]}"
    return f"{folder}: holds neither model.safetensors nor {INDEX}"
