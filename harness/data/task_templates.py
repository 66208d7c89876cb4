"""Renders the templates of an lm-eval task on a row, as lm-eval does, but in a sandbox.

A value is the name of a field, a Jinja template, or what it says; see ``doc_to_text``, ``doc_to_target`` and
``doc_to_choice`` of ``lm_eval.api.task.ConfigurableTask``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment

from harness.errors import DataError
from harness.plugins import nearest

_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
_ENVIRONMENT.filters["regex_replace"] = lambda text, pattern, new, count=0: re.sub(pattern, new, text, count=count)
_WORD = re.compile(r"[A-Za-z_]\w*")


def render_value(value: Any, row: Mapping[str, Any]) -> Any:
    """What a key of a task gives for a row: the field of that name, the rendered template, or a value that is no text.

    Raises DataError for a template that does not render, and for a word that is nearly the name of a field.
    """
    if not isinstance(value, str):
        return value
    if value in row:
        return row[value]
    if _WORD.fullmatch(value) and (close := nearest(value, list(row))):
        raise DataError(f"{value!r}, which is no field of the row; did you mean {close}?")
    try:
        return _ENVIRONMENT.from_string(value).render(**row)
    except TemplateSyntaxError as error:
        raise DataError(f"a template that is not Jinja: {error.message}") from None
    except UndefinedError as error:
        raise DataError(f"a template that does not render: {error.message}; the fields are {', '.join(row)}") from None
    except SecurityError:
        return None
    except Exception as error:  # noqa: BLE001 - filters and methods in a template raise anything
        raise DataError(f"a template that does not render: {type(error).__name__}: {error}") from None


def render_choices(value: Any, row: Mapping[str, Any]) -> list[Any] | None:
    """The choices of a row; None if only the run will tell. Raises DataError for what is no list of them."""
    found = list(value.values()) if isinstance(value, Mapping) else render_value(value, row)
    if found is None:
        return None
    if isinstance(found, str) and not (isinstance(value, str) and value in row):
        try:
            found = ast.literal_eval(found)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise DataError(f"{_shorten(found)}, which is no list of choices") from None
    if not isinstance(found, list | tuple) or not found:
        raise DataError(f"{_shorten(found)}, which is no list of choices")
    return list(found)


def check_label(value: Any, row: Mapping[str, Any], choices: Sequence[Any]) -> None:
    """Raises DataError if the right answer of a row is none of its choices: neither a position (from 0) nor a text."""
    label = render_value(value, row)
    if isinstance(label, str) and label.isdigit() and value not in row:
        label = int(label)  # of a template; a field that holds digits as text is compared with the choices
    if isinstance(label, int) and not 0 <= label < len(choices):
        raise DataError(f"position {label} of {len(choices)} choices, which count from 0")
    if isinstance(label, str) and label not in choices:
        raise DataError(f"{_shorten(label)}, which is none of the choices {_shorten(list(choices))}")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
