"""The comparison of the two folders in words: one line beside the verdict, and a row for every difference."""

from __future__ import annotations

from collections.abc import Mapping

from harness.comparability import Part
from harness.errors import HarnessError
from harness.plugins import load
from harness.records import Comparison, Difference
from harness.records.comparison import Basis, Severity
from harness.report import display

SEVERITIES: Mapping[Severity, str] = {
    "at_once": "at once",
    "beyond_inputs": "beyond ordinary inputs",
    "informative": "informative",
}
_SAME: Mapping[Basis, str] = {
    "folders": "both folders hold the same bytes in every file that a user would load",
    "artifact": "the saved variant holds the same bytes as the reference in every file that a user would load",
    "reference": "the variant has the reference's own tokenizer and configuration",
}
_PARTS = 3
"""How many parts the line names."""


def verdict_line(comparison: Comparison) -> str:
    """The verdict with its reason: "comparable: no, because of the chat template (…)"."""
    return f"comparable: {comparison.comparable}, {_reason(comparison)}"


def verdict_sentence(comparison: Comparison) -> str:
    """The same as a sentence of its own."""
    line = verdict_line(comparison)
    return f"{line[:1].upper()}{line[1:]}."


def title(part: str) -> str:
    """A part in words, with its article; its name, if it is not installed here."""
    try:
        return load(Part, part).title
    except (HarnessError, ImportError):
        return part


def worst_first(comparison: Comparison) -> list[Difference]:
    """All differences, those that change behaviour at once first."""
    return [each for severity in SEVERITIES for each in comparison.of_severity(severity)]


def describe_severity(difference: Difference) -> str:
    """When a difference matters: "at once", "from position 512 on"."""
    if difference.from_position is not None:
        return f"from position {difference.from_position} on"
    return SEVERITIES[difference.severity]


def _reason(comparison: Comparison) -> str:
    if comparison.comparable == "yes":
        if comparison.same_files:
            return _SAME[comparison.basis]
        names = list(dict.fromkeys(title(each.part) for each in comparison.differences))
        unlike = f" beyond what a measurement shows; also different: {', '.join(names)}" if names else ""
        return f"nothing differs that would change what users get{unlike}"
    found = comparison.of_severity("at_once") or comparison.of_severity("beyond_inputs")
    first: dict[str, Difference] = {}
    for each in found:
        first.setdefault(each.part, each)
    said = [_phrase(each) for each in list(first.values())[:_PARTS]]
    said += [f"{len(first) - _PARTS} more parts"] if len(first) > _PARTS else []
    if found:
        return f"because of {' and '.join(said)}"
    lost = (f"{title(each.part)} could not be compared ({each.reason})" for each in comparison.omissions[:_PARTS])
    return f"because {' and '.join(lost)}"


def _phrase(difference: Difference) -> str:
    where = f" {describe_severity(difference)}" if difference.from_position is not None else ""
    field = "" if difference.field == difference.part else f"{difference.field}: "
    values = display.clean(f"{field}{difference.reference} → {difference.variant}", 160)
    return f"{title(difference.part)}{where} ({values})"
