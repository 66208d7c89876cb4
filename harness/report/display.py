"""Formats numbers and names for reading. Rounding happens only here, and never hides a difference."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from harness.system.masking import mask

# Cc, Cf, Cs, Co, Cn: control and format characters (ANSI escapes, text direction overrides, zero width),
# surrogates, private use, unassigned. Zl, Zp: line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_NUMBERS = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")
_SHORT_UNITS = {"tokens/second": "tokens/s", "milliseconds": "ms", "bits/weight": "bits", "bytes/token": "B/token"}
SHARES = frozenset({"fraction", "share", "probability"})
"""Units that are written as percentages."""
_INSEPARABLE = SHARES | {"bytes", "ratio"}
_MINUS = "\u2212"
_THIN = "\u202f"  # narrow no-break space between groups of digits and before units
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def clean(text: str, most: int = 400) -> str:
    """``text`` on one line, without characters that a terminal or browser interprets or that mislead a reader.

    Control and direction characters become visible escapes, hub tokens and home folders are masked, and text longer
    than ``most`` characters keeps its beginning and end.
    """
    # Masked before truncation, so that no part of a secret is left that the pattern does not match.
    text = mask(text)
    if len(text) > most:
        tail = most // 3
        text = f"{text[: most - tail]} … {text[-tail:]}"
    # What Python calls printable is never hidden; nearly all texts are that as a whole.
    return text if text.isprintable() else "".join(map(_escape_invisible, text))


def show_end(text: str, most: int) -> str:
    """The last ``most`` characters of a text that may have several lines, with their breaks as a sign."""
    text = show_breaks(text)
    return text if len(text) <= most else f"… {text[-most:]}"


def show_breaks(text: str) -> str:
    """Line breaks as a sign, because they are part of the text and would be invisible."""
    return text.replace("\n", " ⏎ ")


def _escape_invisible(character: str) -> str:
    if character in "\n\t":
        return " "
    if unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def number(value: float | None, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits; integers in full; very large and very small ones as m×10ⁿ.

    Trailing zeros are dropped only if the value is exact without them: 0.5 is one half, 0.500 a value near it.
    """
    if value is None:
        return "–"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e9:
        return _group_digits(f"{value:.0f}")
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    if -5 < exponent < 9:
        return _group_digits(_trim_zeros(f"{value:.{max(0, digits - 1 - exponent)}f}", value))
    mantissa = _trim_zeros(f"{value:.{digits - 1}e}", value).partition("e")[0].replace("-", _MINUS)
    power = f"10{str(exponent).translate(_SUPERSCRIPT)}"
    return power if mantissa == "1" else f"{mantissa}×{power}"


def format_signed(value: float | None, digits: int = 3) -> str:
    """Like ``number``, with a plus sign for positive values."""
    return f"+{number(value, digits)}" if value is not None and value > 0 else number(value, digits)


def percent(value: float | None, digits: int = 3) -> str:
    """A fraction as a percentage: 0.8778 is 87.8 %."""
    return "–" if value is None else f"{number(_shift(value), digits)}{_THIN}%"


def points(value: float | None, digits: int = 3) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return "–" if value is None else f"{format_signed(_shift(value), digits)}{_THIN}pp"


def _shift(value: float) -> float:
    # 0.29 * 100 is 28.999999999999996; shifting the decimal digits of the value gives the intended number.
    return float(f"{value!r}e2") if "e" not in repr(value) and math.isfinite(value) else value * 100


def count(value: int, things: str) -> str:
    """``value`` with what was counted, a plural that ends in s: "1 document", "200 documents"."""
    return f"{number(value)} {things.removesuffix('s') if value == 1 else things}"


def format_duration(seconds: float) -> str:
    """Seconds as a person says them: "40 seconds", "12 minutes", "3.5 hours"."""
    if seconds < 90:
        count = max(1, round(seconds))
        return f"{count} second{'s' * (count != 1)}"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def size(value: float | None) -> str:
    """Bytes in decimal units: 7875280 is 7.88 MB."""
    if value is None:
        return "–"
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= factor:
            return f"{number(value / factor)}{_THIN}{unit}"
    return f"{number(value)}{_THIN}B"


def format_together(values: Sequence[float], digits: int = 3) -> list[str]:
    """All values with as many digits as needed to distinguish those that differ.

    0.9451 with a limit of 0.95 stays 0.9451; values that are equal to the last bit read the same.
    """
    for more in range(digits, 18):
        if len({float(f"{value:.{more - 1}e}") for value in values}) == len(set(values)):
            return [number(value, more) for value in values]
    return [repr(value) for value in values]


def shorten_together(texts: Sequence[str]) -> list[str]:
    """The texts with their long decimal numbers shortened jointly, so that different numbers still differ."""
    numbers = [match for text in texts for match in _NUMBERS.findall(text)]
    short = dict(zip(numbers, format_together([float(match) for match in numbers], 3), strict=True))

    def shorten(match: re.Match[str]) -> str:
        return short[match[0]] if "." in match[0] else match[0]

    return [_NUMBERS.sub(shorten, text) for text in texts]


def split_quantity(value: float, unit: str, digits: int = 3) -> tuple[str, str]:
    """``quantity`` with the written unit apart where it may stand on a line of its own; else with none."""
    if unit in _INSEPARABLE or not unit:
        return quantity(value, unit, digits), ""
    return number(value, digits), _SHORT_UNITS.get(unit, unit)


def in_full(value: float, unit: str = "fraction") -> str:
    """``value`` at reading precision with twelve digits of it behind, as hints show it: "12.3 % (0.123456789012)"."""
    return add_exact(quantity(value, unit), value)


def add_exact(text: str, *values: float) -> str:
    """``text`` with twelve digits of each value behind it, unless it shows them all.

    See ``full``.
    """
    if all(float(value).is_integer() and number(value) in text for value in values):
        return text
    return f"{text} ({', '.join(map(full, values))})"


def full(value: float | None) -> str:
    """Twelve digits of a number that the report computes from tables: the last of 17 may differ between processors."""
    return "" if value is None else f"{value:.12g}"


def exact(value: float | None) -> str:
    """``value`` to the last bit, for what is shown on hover."""
    return "" if value is None else repr(value)


def quantity(value: float | None, unit: str, digits: int = 3) -> str:
    """``value`` in the form that suits its unit: fractions as percentages, bytes as kB or MB, ratios with ×."""
    if value is None:
        return "–"
    if unit == "bytes":
        return size(value)
    if unit in SHARES:
        return percent(value, digits)
    if unit == "ratio":
        return f"×{number(value, digits)}"
    return f"{number(value, digits)}{_THIN}{_SHORT_UNITS.get(unit, unit)}" if unit else number(value, digits)


def short_hash(value: str) -> str:
    """The first twelve characters of a hash, enough to distinguish two by eye."""
    return value[:12]


def shorten_path(path: Path) -> str:
    """The path relative to the current folder if it lies below it, else unchanged."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except (ValueError, OSError):  # the current folder may have been removed
        return str(path)


def _group_digits(text: str) -> str:
    sign, digits = (_MINUS, text[1:]) if text.startswith("-") else ("", text)
    whole, point, fraction = digits.partition(".")
    if len(whole) > 4:
        whole = f"{int(whole):,}".replace(",", _THIN)
    return f"{sign}{whole}{point}{fraction}"


def _trim_zeros(text: str, value: float) -> str:
    """``text`` without trailing zeros of its fraction, if the rest still equals ``value`` up to rounding noise."""
    digits, e, exponent = text.partition("e")
    short = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return short + e + exponent if math.isclose(float(short + e + exponent), value, rel_tol=1e-12) else text
