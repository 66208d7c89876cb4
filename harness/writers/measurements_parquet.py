"""measurements.parquet: every measurement as a row, for programs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

from harness.records import Run
from harness.report.numbers import COLUMNS, list_rows
from harness.system.files import write_atomic
from harness.tables.access import Tables
from harness.writers import Writer


class MeasurementsParquet(Writer):
    """measurements.parquet: every measurement as a row with typed columns, for programs."""

    file_name: ClassVar[str] = "measurements.parquet"

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write measurements.parquet atomically. Raises WriteError."""
        import pyarrow
        from pyarrow import parquet

        types: dict[type, Any] = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64()}
        schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
        stream = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(list_rows(run), schema=schema), stream)
        path = folder / self.file_name
        write_atomic(path, stream.getvalue())
        return path
