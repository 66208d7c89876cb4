"""Imports transformers without libraries that it would load for functions that are never called here.

Where they are installed, transformers imports scikit-learn (with scipy.stats) for assisted generation, scipy.optimize
for losses of object detection, and hqq (with the compiler of torch) for a cache and for checkpoints that are refused
here: as much as all else that a check of rounding imports. The backend hqq imports its library itself. torchao is
imported once one of its checkpoints is opened.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

UNUSED = {
    "transformers.cache_utils": "is_hqq_available",
    "transformers.quantizers.quantizer_hqq": "is_hqq_available",
    "transformers.generation.candidate_generator": "is_sklearn_available",
    "transformers.loss.loss_utils": "is_scipy_available",
}
"""Modules of transformers, each with the function by which it asks for the library that it is to do without."""
TORCHAO = "transformers.quantizers.quantizer_torchao"
"""Reads checkpoints of torchao, of which it imports one function, to save them."""
FLATTEN = "torchao.prototype.safetensors.safetensors_support", "flatten_tensor_state_dict"
"""Where that function is, and its name."""


def import_transformers() -> None:
    """Import these modules, each as if its library were not there; all others still find it.

    To be called before anything else imports transformers; later it has no effect.
    """
    if TORCHAO in sys.modules:
        return
    with _answer_no("is_torchao_available", only_now=True):
        for module, question in UNUSED.items():
            if module not in sys.modules:
                with _answer_no(question):
                    importlib.import_module(module)
        reader: Any = importlib.import_module(TORCHAO)
    reader.flatten_tensor_state_dict = _flatten


def _flatten(*arguments: Any, **named: Any) -> Any:
    module, name = FLATTEN
    return getattr(importlib.import_module(module), name)(*arguments, **named)


@contextmanager
def _answer_no(question: str, only_now: bool = False) -> Iterator[None]:
    """Let modules that are imported in the block find that a library is not there, for good or only while they are."""
    utils = importlib.import_module("transformers.utils")
    asked = getattr(utils, question)
    importing = True

    def answer(*arguments: Any) -> bool:
        return only_now and not importing and bool(asked(*arguments))

    setattr(utils, question, answer)
    try:
        yield
    finally:
        importing = False
        setattr(utils, question, asked)
