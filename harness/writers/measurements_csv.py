"""measurements.csv: every measurement as a row, for spreadsheets."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import ClassVar

from harness.records import Run
from harness.report.numbers import COLUMNS, list_rows
from harness.system.files import write_atomic
from harness.tables.access import Tables
from harness.writers import Writer

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")


class MeasurementsCsv(Writer):
    """measurements.csv: every measurement as a row, in full precision, for spreadsheets."""

    file_name: ClassVar[str] = "measurements.csv"

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write measurements.csv (UTF-8, RFC 4180) atomically. Raises WriteError."""
        path = folder / self.file_name
        stream = io.StringIO()
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for row in list_rows(run):
            writer.writerow([_cell(row[column]) for column in COLUMNS])
        write_atomic(path, stream.getvalue().encode())
        return path


def _cell(value: str | float | None) -> str:
    """A number in full; a text that no spreadsheet takes for a formula."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    return f"'{value}" if value.lstrip().startswith(_FORMULA) else value
