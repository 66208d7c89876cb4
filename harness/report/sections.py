"""Sections of the report: the bundled templates, and those that outside packages add.

A shipped section is a template in ``reports/sections``: ``65_energy.html`` has the anchor ``energy`` and stands between
those numbered 60 and 70. An outside package adds one with an entry point in the group ``harness.sections`` whose
value is a ``Section``. A template sets ``title`` and defines a macro ``body()``; it can use ``run``, ``suites``, the
pieces of ``parts.html``, and every module of ``harness.report`` by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.system.foreign import contain

GROUP = "harness.sections"
_FILE = re.compile(r"(\d+)_([a-z][a-z0-9_-]*)\.html")
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_DESCRIPTION = re.compile(r"\{#\s*(.*?)\s*#\}", re.DOTALL)


@dataclass(frozen=True)
class Section:
    """One section of the report.

    name: its anchor, lower-case letters, digits, "-" and "_". place: where it stands; the shipped sections use 0 to 90.
    description: one line for ``harness list``. template: Jinja source. tools: functions and modules of its own that the
    template uses, by name. origin: the file or entry point it comes from, filled in when it is found.
    """

    name: str
    place: int
    description: str
    template: str
    tools: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""


def find_sections(templates: Path) -> list[Section]:
    """Every section in the order of the report: templates in ``templates/sections``, and those of entry points.

    Raises HarnessError naming the file or entry point that is no section, or two sections with one name.
    """
    sections = [_read(path) for path in sorted((templates / "sections").glob("*.html"))]
    sections += [_load(point) for point in entry_points(group=GROUP)]
    first: dict[str, Section] = {}
    for section in sections:
        other = first.setdefault(section.name, section)
        if other is not section:
            raise HarnessError(f"{section.origin}: {other.origin} is called {section.name!r} too; rename one of them")
    return sorted(sections, key=lambda section: (section.place, section.name))


def _read(path: Path) -> Section:
    name, text = _FILE.fullmatch(path.name), path.read_text(encoding="utf-8")
    if name is None:
        raise HarnessError(f"{path}: expected a name such as 65_energy.html (number, underscore, lower-case name)")
    description = _DESCRIPTION.match(text)
    return Section(name[2], int(name[1]), description[1] if description else "", text, origin=f"sections/{path.name}")


def _load(point: EntryPoint) -> Section:
    origin = f"entry point {point.name} = {point.value} in {GROUP}"
    try:
        with contain(origin):
            section = point.load()
    except Exception as error:
        # Importing an outside package may raise anything; a report without its section would hide that.
        raise HarnessError(f"{origin}: does not load: {type(error).__name__}: {error}") from error
    if not isinstance(section, Section):
        raise HarnessError(f"{origin}: found {type(section).__name__}, expected a harness.report.sections.Section")
    if not _NAME.fullmatch(section.name):
        raise HarnessError(f"{origin}: found the name {section.name!r}, expected lower-case letters, digits, '-', '_'")
    return replace(section, origin=origin)
