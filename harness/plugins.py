"""Finding plugins: by file name in a family's folder, or by entry point; imported only when named.

Families: backends, probes, measures, rules, writers, engines. ``harness/rules/at_most.py`` is the rule ``at_most``; an
outside package adds one with an entry point in the group ``harness.rules`` whose value is the plugin class. A shipped
name cannot be taken by an entry point.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from harness.errors import HarnessError
from harness.records.base import Plugin

Family = Literal["backends", "probes", "measures", "rules", "writers", "engines"]
FAMILIES: tuple[Family, ...] = ("backends", "probes", "measures", "rules", "writers", "engines")


class UnknownPluginError(HarnessError):
    """No plugin of that name; carries what is close and what exists."""

    def __init__(self, family: Family, name: str) -> None:
        self.family, self.name, self.nearest, self.known = family, name, nearest(name, names(family)), names(family)
        close = f"; did you mean {self.nearest}?" if self.nearest else ""
        super().__init__(f"no {family.rstrip('s')} is called {name!r}{close} (known: {', '.join(self.known)})")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like ``name``, or an empty string when none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), "")


@cache
def _shipped(family: Family) -> frozenset[str]:
    package = importlib.import_module(f"harness.{family}")
    return frozenset(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


@cache
def _outside(family: Family) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"harness.{family}"):
        if point.name in _shipped(family) or point.name in found:
            raise HarnessError(f"{point.value}: the {family.rstrip('s')} name {point.name!r} is already taken")
        found[point.name] = point
    return found


def names(family: Family) -> tuple[str, ...]:
    """All plugin names of a family, sorted; nothing is imported but the family's package."""
    return tuple(sorted(_shipped(family) | _outside(family).keys()))


@cache
def load(family: Family, name: str) -> type[Plugin]:
    """The plugin class called ``name``.

    Raises UnknownPluginError for an unknown name, and HarnessError naming the plugin when its module does not import,
    does not hold exactly one plugin class, or the class has no docstring (the docstring is what users read).
    """
    if name in _shipped(family):
        found = _class_in(f"harness.{family}.{name}", family)
    elif name in _outside(family):
        found = _outside(family)[name].load()
    else:
        raise UnknownPluginError(family, name)
    base = importlib.import_module(f"harness.{family}").BASE
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise HarnessError(f"{family.rstrip('s')} {name!r}: {found!r} is not a subclass of {base.__name__}")
    if not found.summary():
        raise HarnessError(f"{family.rstrip('s')} {name!r}: {found.__qualname__} has no docstring")
    found.kind = name
    return found


def _class_in(module_name: str, family: Family) -> type[Plugin]:
    module = importlib.import_module(module_name)
    base: type[Plugin] = importlib.import_module(f"harness.{family}").BASE
    classes: list[type[Plugin]] = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == module_name
        and not value.__name__.startswith("_")
    ]
    if len(classes) != 1:
        raise HarnessError(f"{module_name}: expected exactly one {base.__name__} class, found {len(classes)}")
    return classes[0]
