"""The source text of the classes that a checkpoint is computed by, to see what they read."""

from __future__ import annotations

import inspect
import sys
from functools import cache


def module_source(cls: type) -> str:
    """The text of the file that defines a class; empty where there is none."""
    return _source(cls.__module__)


@cache
def _source(name: str) -> str:
    module = sys.modules.get(name)
    try:
        return inspect.getsource(module) if module else ""
    except (OSError, TypeError):
        return ""
