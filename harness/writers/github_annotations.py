"""github_annotations.txt: workflow commands, by which GitHub shows a rule at its line in the changed files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from harness.report.digest import Digest, Finding
from harness.writers import DigestWriter

MOST = 10
"""GitHub keeps ten errors and ten warnings of a step."""
_DATA = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_PROPERTY = _DATA | {":": "%3A", ",": "%2C"}


class GithubAnnotations(DigestWriter):
    """github_annotations.txt: an annotation for every rule that does not pass; printed by itself in a GitHub job."""

    file_name: ClassVar[str] = "github_annotations.txt"

    @classmethod
    def suits(cls, environment: Mapping[str, str]) -> bool:
        """Whether a GitHub job runs it."""
        return environment.get("GITHUB_ACTIONS") == "true"

    def encode(self, told: Digest) -> bytes:
        """The annotations in UTF-8."""
        return encode_annotations(told).encode()

    def show(self, told: Digest, environment: Mapping[str, str]) -> str:
        """The annotations for standard output, in a GitHub job."""
        return encode_annotations(told) if self.suits(environment) else ""


def encode_annotations(told: Digest) -> str:
    """One workflow command a line: errors for blocking rules that do not pass, warnings for advisory ones."""
    stopping = [each for each in told.findings if each.stops]
    warning = [each for each in told.findings if each.warns]
    lines = [*_commands("error", stopping, told), *_commands("warning", warning, told)]
    return "".join(f"{line}\n" for line in lines)


def _commands(command: str, findings: Sequence[Finding], told: Digest) -> list[str]:
    shown = findings if len(findings) <= MOST else findings[: MOST - 1]
    lines = [_command(command, each, told) for each in shown]
    if more := len(findings) - len(shown):
        text = f"{more} more rules do not pass; all of them: {told.report}"
        lines.append(f"::{command} title={_escape(told.name, _PROPERTY)}::{_escape(text, _DATA)}")
    return lines


def _command(command: str, each: Finding, told: Digest) -> str:
    file, line = each.place
    title = f"{told.name}: {each.name} ({each.status})"
    lines = (each.sentence, each.why, each.remedy, f"rule: {each.where}", f"report: {told.report}")
    properties = {"file": file, "line": str(line), "title": title}
    given = ",".join(f"{key}={_escape(value, _PROPERTY)}" for key, value in properties.items())
    message = "\n".join(filter(None, lines))
    return f"::{command} {given}::{_escape(message, _DATA)}"


def _escape(text: str, characters: Mapping[str, str]) -> str:
    return "".join(characters.get(character, character) for character in text)
