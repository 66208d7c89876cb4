"""What ``harness list`` prints: everything a YAML file can name, each with its one-line description."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.backends import Backend
from harness.engines import Engine
from harness.numerics.hardware.profiles import profiles
from harness.numerics.named_formats import named_formats
from harness.plan import is_installed
from harness.planning.checkpoints import DISTRIBUTION
from harness.plugins import FAMILIES, base_of, load, names
from harness.records import Plugin
from harness.report.sections import find_sections
from harness.system.resources import bundled_file, bundled_names, folder
from harness.system.yaml_file import read_description

Rows = list[tuple[str, str]]


def catalogue_groups() -> dict[str, Rows]:
    """Names and descriptions of suites, gates, targets, number formats, plugins by family, sections of the report."""
    groups: dict[str, Rows] = {}
    for kind in ("suites", "gates"):
        groups[kind] = [(name, read_description(bundled_file(kind, name))) for name in bundled_names(kind)]
    groups["targets"] = list(profiles().targets.items())
    groups["number formats"] = [(each.name, each.summary) for each in named_formats().values()]
    for family in FAMILIES:
        base = base_of(family)
        plugins = {name: load(base, name) for name in names(base)}
        groups[family] = [(name, f"{plugin.summary()}{_needs(plugin)}") for name, plugin in plugins.items()]
    found = find_sections(folder("reports"))
    groups["sections of the report"] = [(section.name, section.description) for section in found]
    return groups


def print_catalogue() -> None:
    """Print every group."""
    console = Console()
    for group, rows in catalogue_groups().items():
        console.print(catalogue_table(group, rows))
    console.print(
        Text("harness list NAME explains one of these, or every key of a variant-file, suite-file or gate-file.")
    )


def _needs(plugin: type[Plugin]) -> str:
    """Which libraries a backend or an engine needs, and how to install them where they are missing."""
    if not issubclass(plugin, Backend | Engine) or not plugin.requires:
        return ""
    missing = [name for name in plugin.requires if not is_installed(name)]
    what = f"{DISTRIBUTION}[{plugin.extra}]" if plugin.extra else " ".join(missing)
    how = f'not installed: pip install "{what}"' if missing else "installed"
    return f" (needs {', '.join(missing or plugin.requires)}, {how})"


def catalogue_table(title: str, rows: Rows) -> Table:
    """Names with their descriptions under a title."""
    table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False, expand=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, description in rows:
        table.add_row(Text(name), Text(description))
    return table
