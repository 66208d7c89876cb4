"""Prequantized checkpoints: does transformers know the quantization method, and is its library installed?"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.errors import MissingDependencyError, ModelError
from harness.models.packed_integers import METHODS
from harness.models.weight_files import locate_config

LIBRARIES: Mapping[str, tuple[str, str]] = {
    "aqlm": ("aqlm", "aqlm"),
    "auto-round": ("auto_round", "lm-shipcheck[autoround]"),
    "awq": ("gptqmodel", "gptqmodel"),
    "bitsandbytes": ("bitsandbytes", "lm-shipcheck[bitsandbytes]"),
    "compressed-tensors": ("compressed_tensors", "lm-shipcheck[llmcompressor]"),
    "eetq": ("eetq", "eetq"),
    "fp_quant": ("fp_quant", "fp_quant"),
    "gptq": ("gptqmodel", "gptqmodel optimum"),
    "higgs": ("flute", "flute-kernel"),
    "quark": ("quark", "amd-quark"),
    "spqr": ("spqr_quant", "spqr_quant"),
    "torchao": ("torchao", "lm-shipcheck[torchao]"),
    "vptq": ("vptq", "vptq"),
}
"""quant_method: the module it needs, and the arguments of pip install."""
NOT_READ: Mapping[str, str] = {
    "gguf": "name the GGUF file itself: model: file.gguf",
    "hqq": "quantize the original checkpoint when it is loaded: compress: [{backend: hqq, …}]",
    "quanto": "quantize the original checkpoint when it is loaded: compress: [{backend: quanto, …}]",
}
"""quant_method: what to do instead, for methods that transformers knows but whose saved files it cannot read."""

_SPARSE = ("sparse-24-bitmask", "sparse-bitmask")
"""Formats of compressed-tensors with a bit mask of the values other than zero; recent releases do not read them."""


def quantization_method(folder: Path, config: Mapping[str, Any]) -> str:
    """The ``quant_method`` of a checkpoint, or an empty string if it is not quantized.

    Raises ModelError for a method that transformers does not know (it would warn, drop the scales and continue), and
    MissingDependencyError if the method's library is not installed and the files are not ``unpacked_here``.
    """
    path = folder / "config.json"
    declared, trail = locate_config(config)
    if not declared:
        if (folder / "hf_quant_config.json").exists():
            raise ModelError(
                f"{folder}: hf_quant_config.json says the weights are quantized, but config.json does not, "
                "and transformers would load the codes as weights; export it again for transformers"
            )
        if (folder / "quanto_qmap.json").exists():
            raise ModelError(
                f"{folder}: quanto_qmap.json makes this a checkpoint of optimum-quanto, which transformers cannot "
                f"read; {NOT_READ['quanto']}"
            )
        return ""
    if not isinstance(declared, dict):
        raise ModelError(f"{path}: {trail} is {declared!r}, expected an object")
    _check_no_bit_masks(path, declared, trail)
    method = _method(declared)
    known = _list_methods()
    if method not in known:
        raise ModelError(
            f"{path}: {trail}.quant_method is {method!r}, which transformers does not know: it "
            f"would ignore the scales and load wrong weights (known: {', '.join(sorted(known))}); export it "
            "in a known format"
        )
    if method in NOT_READ:
        raise ModelError(
            f"{path}: {trail}.quant_method is {method!r}, whose saved checkpoints transformers cannot "
            f"read; {NOT_READ[method]}"
        )
    if method in LIBRARIES and not is_unpacked_here(method):
        module, package = LIBRARIES[method]
        if not _is_installed(module):
            quoted = f'"{package}"' if "[" in package else package
            raise MissingDependencyError(
                module.replace("_", "-"), f"{folder} (quantized with {method})", f"pip install {quoted}"
            )
    return method


def is_unpacked_here(method: str) -> bool:
    """Whether ``packed_integers`` unpacks the files of a method, because its library is not installed."""
    return method in METHODS and not _is_installed(LIBRARIES[method][0])


def _check_no_bit_masks(path: Path, declared: Mapping[str, Any], trail: str) -> None:
    sparse = declared.get("sparsity_config")
    found = sparse.get("format") if isinstance(sparse, dict) else None
    if found in _SPARSE:
        raise ModelError(
            f"{path}: {trail}.sparsity_config.format is {found!r}, which compressed-tensors wrote in the past and does "
            "not read any more; save the model with dense weights (their zeros are counted all the same)"
        )


def _method(found: Mapping[str, Any]) -> str:
    """quant_method as the loader reads it: old bitsandbytes files only have load_in_4bit or load_in_8bit."""
    if found.get("load_in_4bit") or found.get("load_in_8bit"):
        return "bitsandbytes"
    return str(found.get("quant_method"))


def _list_methods() -> set[str]:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    return {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING}


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # The parent package is missing.
        return False
