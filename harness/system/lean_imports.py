"""Imports transformers without libraries that it would load for functions that are never called here.

Where they are installed, transformers imports scikit-learn (with scipy.stats) for assisted generation, scipy.optimize
for losses of object detection, and hqq (with the compiler of torch) for a cache and for checkpoints that are refused
here: as much as all else that a check of rounding imports. The backend hqq imports its library itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = {
    "transformers.cache_utils": "is_hqq_available",
    "transformers.quantizers.quantizer_hqq": "is_hqq_available",
    "transformers.generation.candidate_generator": "is_sklearn_available",
    "transformers.loss.loss_utils": "is_scipy_available",
}
"""Modules of transformers, each with the function by which it asks for the library that it is to do without."""


def import_transformers() -> None:
    """Import these modules, each as if its library were not there; all others still find it.

    To be called before anything else imports transformers; later it has no effect.
    """
    for module, question in UNUSED.items():
        if module not in sys.modules:
            with _answer_no(question):
                importlib.import_module(module)


@contextmanager
def _answer_no(question: str) -> Iterator[None]:
    utils = importlib.import_module("transformers.utils")
    asked = getattr(utils, question)
    setattr(utils, question, lambda *_: False)
    try:
        yield
    finally:
        setattr(utils, question, asked)
