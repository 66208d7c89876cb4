"""Checkpoints that come quantized: does transformers know the method, and is its library installed?"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.errors import MissingDependencyError, ModelError

LIBRARIES: Mapping[str, tuple[str, str]] = {
    "aqlm": ("aqlm", "aqlm"),
    "auto-round": ("auto_round", "auto-round"),
    "awq": ("gptqmodel", "gptqmodel"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "eetq": ("eetq", "eetq"),
    "fp_quant": ("fp_quant", "fp_quant"),
    "gptq": ("gptqmodel", "gptqmodel optimum"),
    "higgs": ("flute", "flute-kernel"),
    "hqq": ("hqq", "hqq"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "quark": ("quark", "amd-quark"),
    "spqr": ("spqr_quant", "spqr_quant"),
    "torchao": ("torchao", "torchao"),
    "vptq": ("vptq", "vptq"),
}
"""quant_method: the module it needs, and what pip calls it."""


def quantization_method(folder: Path, config: Mapping[str, Any]) -> str:
    """The ``quant_method`` of a checkpoint, or an empty string for one that is not quantized.

    Raises ModelError for a method that transformers does not know (it would warn, drop the scales and go on),
    and MissingDependencyError when the method's library is not installed.
    """
    path = folder / "config.json"
    found = config.get("quantization_config") or config.get("compression_config")
    if not found:
        if (folder / "hf_quant_config.json").exists():
            raise ModelError(
                f"{folder}: hf_quant_config.json says the weights are quantized, but config.json does not, "
                "and transformers would load the codes as weights; export it again for transformers"
            )
        return ""
    if not isinstance(found, dict):
        raise ModelError(f"{path}: quantization_config is {found!r}, wanted an object")
    method = _method(found)
    known = _known()
    if method not in known:
        raise ModelError(
            f"{path}: quantization_config.quant_method is {method!r}, which transformers does not know: it "
            f"would ignore the scales and load wrong weights (known: {', '.join(sorted(known))}); export it "
            "in a known format"
        )
    if method in LIBRARIES:
        module, package = LIBRARIES[method]
        if not _installed(module):
            raise MissingDependencyError(
                package.split()[0], f"{folder} (quantized with {method})", f"pip install {package}"
            )
    return method


def _method(found: Mapping[str, Any]) -> str:
    """quant_method as the loader reads it: old bitsandbytes files only say load_in_4bit or load_in_8bit."""
    if found.get("load_in_4bit") or found.get("load_in_8bit"):
        return "bitsandbytes"
    return str(found.get("quant_method"))


def _known() -> set[str]:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    return {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING}


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # The parent package is missing.
        return False
