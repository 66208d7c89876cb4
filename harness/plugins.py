"""Finds plugins by file name in a family's folder, or by entry point; they are imported only when named.

Families: backends, probes, measures, rules, writers, engines, and the parts of comparability.
``harness/rules/at_most.py`` is the rule ``at_most``; an outside package adds one with an entry point in the group
``harness.rules`` whose value is the plugin class. The name of a built-in plugin cannot be taken by an entry point.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar, cast

from harness.errors import HarnessError
from harness.records.base import Plugin
from harness.system.foreign import contain

FAMILIES = ("backends", "probes", "measures", "rules", "writers", "engines", "comparability")
P = TypeVar("P", bound=Plugin)


class UnknownPluginError(HarnessError):
    """No plugin of that name; contains the closest and all known names."""

    def __init__(self, base: type[Plugin], name: str) -> None:
        self.known = names(base)
        self.nearest = nearest(name, self.known)
        close = f"; did you mean {self.nearest}?" if self.nearest else ""
        super().__init__(f"no {base.role()} is called {name!r}{close} (known: {', '.join(self.known)})")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most similar to ``name``, or an empty string if none is close."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), "")


def base_of(family: str) -> type[Plugin]:
    """The base class of a family, which its package calls BASE."""
    base: type[Plugin] = importlib.import_module(f"harness.{family}").BASE
    return base


@cache
def _list_built_in(family: str) -> frozenset[str]:
    package = importlib.import_module(f"harness.{family}")
    return frozenset(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


@cache
def _entry_points(family: str) -> dict[str, EntryPoint]:
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"harness.{family}"):
        if point.name in _list_built_in(family) or point.name in points:
            raise HarnessError(f"{point.value}: the {family.removesuffix('s')} name {point.name!r} is already taken")
        points[point.name] = point
    return points


def names(base: type[Plugin]) -> tuple[str, ...]:
    """All plugin names of a family, given by its base class, sorted; only the family's package is imported."""
    return tuple(sorted(_list_built_in(base.family) | _entry_points(base.family).keys()))


def load(base: type[P], name: str) -> type[P]:
    """The plugin class called ``name`` in the family of ``base``.

    Raises UnknownPluginError for an unknown name, and HarnessError naming the plugin when its module does not import
    or does not hold exactly one plugin class, or when the class is not a subclass of ``base``, has no docstring (which
    is what users read), or lacks a method or class attribute that the family requires.
    """
    if name in _list_built_in(base.family):
        plugin = _class_in(f"harness.{base.family}.{name}", base_of(base.family))
    elif name in _entry_points(base.family):
        plugin = _import(base, name)
    else:
        raise UnknownPluginError(base, name)
    if not (inspect.isclass(plugin) and issubclass(plugin, base)):
        raise HarnessError(f"{base.role()} {name!r}: {plugin!r} is not a subclass of {base.__name__}")
    if not plugin.summary():
        raise HarnessError(f"{base.role()} {name!r}: {plugin.__qualname__} has no docstring")
    if missing := plugin.missing():
        raise HarnessError(
            f"{base.role()} {name!r}: {plugin.__module__}.{plugin.__qualname__} lacks {', '.join(missing)}, which a "
            f"{base.role()} must define; see {base_of(base.family).__name__} in harness/{base.family}/__init__.py"
        )
    if fault := plugin.unfit():
        raise HarnessError(f"{base.role()} {name!r}: {plugin.__module__}.{plugin.__qualname__}: {fault}")
    plugin.kind = name
    return plugin


def _import(base: type[P], name: str) -> type[P]:
    what = f"the {base.role()} {name!r}"
    try:
        with contain(f"importing {what}"):
            return cast("type[P]", _entry_points(base.family)[name].load())
    except HarnessError:
        raise
    except Exception as error:  # The code of a package may raise anything.
        raise HarnessError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error


@cache
def _class_in(module_name: str, base: type[Plugin]) -> type[Plugin]:
    module = importlib.import_module(module_name)
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
