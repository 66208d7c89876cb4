"""What ``harness list`` prints: everything a YAML file can name, each with its one-line description."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.hardware.profiles import profiles
from harness.plugins import FAMILIES, load, names
from harness.resources import shipped_file, shipped_names
from harness.strict_yaml.file import read_description


def print_catalogue() -> None:
    """Print shipped suites and gates, the targets, then every plugin of every family."""
    console = Console()
    for kind in ("suites", "gates"):
        rows = [(name, read_description(shipped_file(kind, name))) for name in shipped_names(kind)]
        console.print(_table(kind, rows))
    console.print(_table("targets", list(profiles().targets.items())))
    for family in FAMILIES:
        console.print(_table(family, [(name, load(family, name).summary()) for name in names(family)]))


def _table(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False, expand=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, description in rows:
        table.add_row(Text(name), Text(description))
    return table
