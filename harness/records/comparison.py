"""What tells two model folders apart, beyond what their documents show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.records.base import Record

Severity = Literal["at_once", "beyond_inputs", "informative"]
Comparable = Literal["yes", "partly", "no"]
Basis = Literal["folders", "artifact", "reference"]


class Difference(Record):
    """One difference between what users of the reference and of the variant load.

    part: the plugin of ``harness.comparability`` that found it. field: what differs; reference and variant: its value
    on each side, in words. severity: ``at_once`` changes what users get of ordinary inputs within the context that the
    reference declares; ``beyond_inputs`` only for others (longer contexts, rare characters, images); ``informative``
    changes nothing, or is in force for every token, so that the measured numbers include it. from_position: the first
    position on which it matters, if that is known. example: an input on which both sides differ. count: how many do.
    """

    part: str
    field: str
    reference: str
    variant: str
    meaning: str
    severity: Severity
    from_position: Annotated[int, Field(ge=0)] | None = None
    example: str = ""
    count: Annotated[int, Field(ge=1)] = 1


class Omission(Record):
    """A part that could not be compared, and why."""

    part: str
    reason: str


class Comparison(Record):
    """All differences between what users of the reference and of the variant load.

    comparable: ``no`` if any changes behaviour at once; ``partly`` if any matters beyond the inputs of a suite, or a
    part could not be compared; else ``yes``. basis: what stood on the variant's side: the ``folders`` that both were
    loaded from, the ``artifact`` that this run saved, or, for a variant made here and not saved, the files of the
    ``reference``. same_files: every file that a user would load has the same bytes on both sides. parts: all that were
    looked at.
    """

    comparable: Comparable
    basis: Basis
    same_files: bool
    parts: tuple[str, ...]
    differences: tuple[Difference, ...] = ()
    omissions: tuple[Omission, ...] = ()

    @classmethod
    def of(
        cls,
        basis: Basis,
        same_files: bool,
        parts: Iterable[str],
        differences: Iterable[Difference] = (),
        omissions: Iterable[Omission] = (),
    ) -> Comparison:
        """The comparison with its verdict."""
        found, lost = tuple(differences), tuple(omissions)
        return cls(
            comparable=_verdict(found, lost),
            basis=basis,
            same_files=same_files,
            parts=tuple(parts),
            differences=found,
            omissions=lost,
        )

    @model_validator(mode="after")
    def _consistent(self) -> Comparison:
        expected = _verdict(self.differences, self.omissions)
        if self.comparable != expected:
            raise ValueError(f"comparable is {self.comparable!r}, but its differences make it {expected!r}")
        return self

    def of_severity(self, severity: Severity) -> tuple[Difference, ...]:
        """The differences of one severity."""
        return tuple(each for each in self.differences if each.severity == severity)


def _verdict(differences: Iterable[Difference], omissions: tuple[Omission, ...]) -> Comparable:
    severities = {each.severity for each in differences}
    if "at_once" in severities:
        return "no"
    return "partly" if "beyond_inputs" in severities or omissions else "yes"
