"""Reads the key ``outputs`` of a variant file: the writers that make files from the finished run."""

from __future__ import annotations

from typing import Any

from harness.planning.checking import Checker
from harness.system.yaml_values import KeyPath
from harness.writers import Writer

DEFAULT = ("report_html",)


def read_outputs(check: Checker, value: Any) -> tuple[Writer, ...]:
    """The writers that ``outputs`` names, by default ``report_html``. Notes problems.

    An entry is a name, or ``{writer: name, setting: …}``. No two may write files of the same name.
    """
    entries = DEFAULT if value is None else check.entries(value, ("outputs",), "names of writers")
    writers: dict[str, Writer] = {}
    for index, entry in enumerate(entries):
        path: KeyPath = ("outputs", index)
        writer = check.plugin(Writer, entry, path)
        if writer is None:
            continue
        other = writers.setdefault(writer.file_name.casefold(), writer)
        if other is not writer:
            found = f"{writer.kind}, which writes {writer.file_name} as {other.kind} does"
            check.problem(path, found, "outputs with different files")
    return tuple(writers.values())
