"""Number formats that many tests speak of."""

from __future__ import annotations

from typing import Any

from harness.records import NumberFormat
from harness.records.schema_1_formats import parse_format, parse_name

INT8_INPUTS = NumberFormat(type="int", bits=8, symmetric=True, granularity="token", scales="float", dynamic=True)
"""INT8 with a scale for every token, taken from every input anew."""


def named(name: str, **fields: Any) -> NumberFormat:
    """A format by its name ("int4", "fp8_e4m3", "float32")."""
    return NumberFormat(**(parse_name(name) | fields))


def inputs(words: str) -> NumberFormat:
    """A format by the words of its record ("int8 per token, dynamic")."""
    return NumberFormat(**parse_format(words))
