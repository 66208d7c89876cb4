"""``harness compare``: what tells two model folders apart, without their weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from harness.comparability import Sides, compare_sides, read_side
from harness.pocket import MODEL_DIR
from harness.records import Comparison
from harness.records.comparison import Severity
from harness.report import comparability
from harness.terminal import Terminal, defuse, standard_console

POCKET = "pocket"
_MARKS: Mapping[Severity, str] = {"at_once": "✕", "beyond_inputs": "!", "informative": "·"}
"""Worst first."""


def compare_folders(reference: Path, variant: Path, as_json: bool) -> int:
    """Print the comparison of two folders; returns 1 if a difference changes behaviour at once, else 0.

    Raises ModelError for a folder that is no model of transformers, or has damaged files.
    """
    ours, theirs = (MODEL_DIR if str(path) == POCKET else path for path in (reference, variant))
    comparison = compare_sides(Sides(read_side(ours, "reference"), read_side(theirs, "variant")))
    if as_json:
        sys.stdout.write(f"{comparison.model_dump_json(indent=1)}\n")
    else:
        _print(comparison)
    return 1 if comparison.comparable == "no" else 0


def _print(comparison: Comparison) -> None:
    terminal = Terminal(standard_console(sys.stdout))
    if comparison.differences:
        terminal.show(_table(comparison))
    for lost in comparison.omissions:
        terminal.note(f"{comparability.title(lost.part)} could not be compared: {lost.reason}")
    terminal.stage(comparability.verdict_line(comparison))


def _table(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for each in comparability.worst_first(comparison):
        field = "" if each.field == each.part else f" {each.field}"
        about = f"{each.part}{field}, {comparability.describe_severity(each)}: {each.reference} → {each.variant}"
        example = f" (first: {each.example!r})" if each.example else ""
        table.add_row(_MARKS[each.severity], Text(defuse(about)))
        table.add_row("", Text(defuse(f"{each.meaning}{example}")))
    return table
