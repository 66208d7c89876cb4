"""All measurements, grouped by family, with the rows of very long groups left to run.json."""

from __future__ import annotations

from dataclasses import dataclass

from harness.records import Measurement, Run


@dataclass(frozen=True)
class Family:
    """The measurements of one family; hidden counts the rows that are not listed."""

    name: str
    title: str
    rows: tuple[Measurement, ...]
    total: int

    @property
    def hidden(self) -> int:
        """How many rows are left to run.json."""
        return self.total - len(self.rows)


def families(run: Run, most_of_a_name: int = 24, most: int = 160) -> list[Family]:
    """One group per family in the order of measurement, with a limited number of rows per name and per family."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in run.measurements:
        groups.setdefault(measurement.name.partition(".")[0], []).append(measurement)
    return [
        Family(name, name.replace("_", " ").capitalize(), tuple(_few(rows, most_of_a_name)[:most]), len(rows))
        for name, rows in groups.items()
    ]


def _few(rows: list[Measurement], most: int) -> list[Measurement]:
    seen: dict[str, int] = {}
    kept = []
    for row in rows:
        seen[row.name] = seen.get(row.name, 0) + 1
        if seen[row.name] <= most:
            kept.append(row)
    return kept
