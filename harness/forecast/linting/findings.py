"""The record of one defect of a gate, and its rendering as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from harness.planning.specs import RuleSpec

Severity = Literal["error", "warning"]
LIMITS = ("margin", "limit", "share")


@dataclass(frozen=True)
class Finding:
    """One defect of a gate. An error is a rule (or gate) that cannot work, a warning one that works poorly.

    where: ``file:line``; key: the key in that file, as ``rules[2].margin``.
    """

    severity: Severity
    where: str
    key: str
    what: str
    why: str
    do: str

    def __str__(self) -> str:
        place = f"{self.where}: {self.key}" if self.key else self.where
        return f"{place}: {self.what}; {self.why}; {self.do}"


def key_of(index: int, spec: RuleSpec, field: str = "") -> str:
    """The key of a rule in its gate file, or of its field; ``limit`` means the field that holds the limit."""
    fields = type(spec.rule).model_fields
    if field == "limit":
        field = next((name for name in LIMITS if name in fields and getattr(spec.rule, name) is not None), "")
    return f"rules[{index}].{field}" if field else f"rules[{index}]"


def weight(spec: RuleSpec) -> Severity:
    """Severity of a rule that cannot work: by its level."""
    return "error" if spec.rule.level == "block" else "warning"


def exit_code(findings: Iterable[Finding]) -> int:
    """0 without an error (warnings do not count), else 2."""
    return 2 if any(finding.severity == "error" for finding in findings) else 0
