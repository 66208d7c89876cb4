"""github_summary.md: the summary of a job in GitHub Actions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar

from harness.errors import WriteError
from harness.report import markdown
from harness.report.digest import Digest
from harness.writers import DigestWriter

VARIABLE = "GITHUB_STEP_SUMMARY"
"""The environment variable with the file that GitHub shows, shared by all that one step appends."""
MOST_BYTES = 1_000_000
"""GitHub refuses the summary of a step beyond 1 MiB (1,048,576 bytes)."""


class GithubSummary(DigestWriter):
    """github_summary.md: verdict, rules and measurements for the summary of a GitHub job; on by itself there."""

    file_name: ClassVar[str] = "github_summary.md"

    @classmethod
    def suits(cls, environment: Mapping[str, str]) -> bool:
        """Whether a step of a GitHub job runs it."""
        return bool(environment.get(VARIABLE))

    def encode(self, told: Digest) -> bytes:
        """The summary in UTF-8."""
        return encode_summary(told).encode()

    def show(self, told: Digest, environment: Mapping[str, str]) -> str:
        """Append the summary to that of the step, as far as there is room. Raises WriteError."""
        target = environment.get(VARIABLE)
        if not target:
            return ""
        try:
            with open(target, "ab") as stream:
                room = MOST_BYTES - os.fstat(stream.fileno()).st_size
                text = "\n" + encode_summary(told, room - 1)
                if len(text.encode()) <= room:
                    stream.write(text.encode())
        except OSError as error:
            raise WriteError(f"{target}: the summary could not be appended: {error.strerror or error}") from error
        return ""


def encode_summary(told: Digest, most: int = MOST_BYTES) -> str:
    """The summary, of at most ``most`` bytes in UTF-8 where they are enough for a line."""
    sections = (
        markdown.head(told),
        markdown.stopping(told),
        markdown.warnings(told),
        markdown.compressed(told),
        markdown.passing(told),
        markdown.measured(told),
    )
    return markdown.fit(sections, most, markdown.code(told.report))
