"""comment.md: the verdict as a comment on a pull request or merge request."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from harness.records import Run
from harness.report import markdown
from harness.report.digest import digest
from harness.system.files import write_atomic
from harness.tables.access import Tables
from harness.writers import Writer

MOST_BYTES = 60_000
"""GitHub refuses comments of more than 65,536 characters; what posts one may add a line."""


class CommentMd(Writer):
    """comment.md: the verdict for a comment on a pull request, with a marker by which it is found and replaced."""

    file_name: ClassVar[str] = "comment.md"

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write comment.md atomically. Raises WriteError."""
        path = folder / self.file_name
        write_atomic(path, encode_comment(run, folder).encode())
        return path


def encode_comment(run: Run, folder: Path) -> str:
    """The comment, of at most ``MOST_BYTES`` in UTF-8. Its first line is the same for every run of this variant."""
    told = digest(run, folder)
    sections = (
        markdown.head(told),
        markdown.stopping(told),
        markdown.warnings(told),
        markdown.compressed(run),
        markdown.passing(told),
    )
    marker = f"<!-- lm-shipcheck: {markdown.mark_safely(run.name)} -->\n"
    return marker + markdown.fit(sections, MOST_BYTES - len(marker.encode()), markdown.code(told.report))
