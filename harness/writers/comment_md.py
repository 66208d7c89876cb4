"""comment.md: the verdict as a comment on a pull request or merge request."""

from __future__ import annotations

from typing import ClassVar

from harness.report import markdown
from harness.report.digest import Digest
from harness.writers import DigestWriter

MOST_BYTES = 60_000
"""GitHub refuses comments of more than 65,536 characters; what posts one may add a line."""


class CommentMd(DigestWriter):
    """comment.md: the verdict for a comment on a pull request, with a marker by which it is found and replaced."""

    file_name: ClassVar[str] = "comment.md"

    def encode(self, told: Digest) -> bytes:
        """The comment in UTF-8."""
        return encode_comment(told).encode()


def encode_comment(told: Digest) -> str:
    """The comment, of at most ``MOST_BYTES`` in UTF-8. Its first line is the same for every run of this variant."""
    sections = (
        markdown.head(told),
        markdown.stopping(told),
        markdown.warnings(told),
        markdown.compressed(told),
        markdown.passing(told),
    )
    marker = f"<!-- lm-shipcheck: {markdown.mark_safely(told.name)} -->\n"
    return marker + markdown.fit(sections, MOST_BYTES - len(marker.encode()), markdown.code(told.report))
