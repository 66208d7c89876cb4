"""Numbers in the sentences of verdicts."""

from __future__ import annotations


def show(*values: float) -> list[str]:
    """Numbers in as few digits (at least five) as still tell different numbers apart."""
    for digits in range(5, 18):
        texts = [_text(value, digits) for value in values]
        if len(set(texts)) == len(set(values)):
            return texts
    return [repr(value) for value in values]


def _text(value: float, digits: int) -> str:
    value = value + 0.0  # no "-0"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.{digits}g}"
