"""Many variants of one file: the key ``matrix`` lists axes, and every combination of their values is one variant.

    matrix: {bits: [3, 4], method: {rtn: …, gptq: …}}  ─▶  four files without the key, ``$bits`` and ``$method`` filled

A value is a plain one, or has a label and may be anything that YAML writes: a setting, a step, a list of steps.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import Problem
from harness.planning.checking import Checker
from harness.planning.locating import is_slug
from harness.plugins import nearest
from harness.system.yaml_file import YamlFile
from harness.system.yaml_values import KeyPath, describe

KEY = "matrix"
EXCLUDE = "exclude"
MOST_VARIANTS = 500
"""Variants of one file; more are a slip of the pen."""
_AXIS = re.compile(r"[a-z][a-z0-9_]*")
_PLACEHOLDER = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True)
class Expansion:
    """One variant of a file. choice: the label of its value on every axis, in the order of the axes."""

    source: YamlFile
    choice: Mapping[str, str]


@dataclass(frozen=True)
class _Value:
    """A value of an axis. suffix: what the names of its variants end with. path: where it stands in the file."""

    label: str
    suffix: str
    path: KeyPath


def expand(source: YamlFile, check: Checker) -> list[Expansion]:
    """One file for each combination of the matrix, in order, the last axis fastest; the file itself without a matrix.

    Mistakes of the matrix are added to ``check``; there are no variants then.
    """
    if not isinstance(source.data, Mapping) or KEY not in source.data:
        return [Expansion(source, {})]
    before = len(check.problems)
    axes = _read_axes(check, source.data[KEY])
    excluded = _read_excluded(check, source.data[KEY], axes)
    _check_placeholders(check, source, axes)
    count = len(list(itertools.islice(_combine(axes, excluded), MOST_VARIANTS + 1)))
    if axes and not 0 < count <= MOST_VARIANTS:
        found = "no variant that is not excluded" if not count else f"more than {MOST_VARIANTS} variants"
        check.problem((KEY,), found, f"1 to {MOST_VARIANTS} variants")
    if len(check.problems) > before:
        return []
    return [_fill(source, chosen) for chosen in _combine(axes, excluded)]


def describe_choice(choice: Mapping[str, str]) -> str:
    """The values of a variant in words: "bits 4, method gptq"."""
    return ", ".join(f"{axis} {label}" for axis, label in choice.items())


def _read_axes(check: Checker, content: Any) -> dict[str, list[_Value]]:
    if not isinstance(content, Mapping) or not set(content) - {EXCLUDE}:
        check.problem((KEY,), describe(content), "axes with their values, such as {bits: [3, 4]}")
        return {}
    axes = {}
    for axis, values in content.items():
        if axis == EXCLUDE:
            continue
        if not _AXIS.fullmatch(axis):
            check.problem((KEY, axis), repr(axis), "a name of lower-case letters, digits and '_'")
        axes[axis] = list(_read_values(check, axis, values))
    return axes


def _read_values(check: Checker, axis: str, values: Any) -> Iterator[_Value]:
    path: KeyPath = (KEY, axis)
    if not isinstance(values, tuple | Mapping) or not values:
        expected = "a list of plain values, or a mapping of labels to values"
        check.problem(path, describe(values) if values else "no values", f"{expected}, at least one")
        return
    known: dict[str, KeyPath] = {}
    for key in values if isinstance(values, Mapping) else range(len(values)):
        place = (*path, key)
        label = key if isinstance(key, str) else _label(values[key])
        if label is None:
            hint = f"give it a label: {{{axis}: {{some-label: …}}}}"
            check.problem(place, describe(values[key]), "a number, text, true or false", hint)
        elif not is_slug(label):
            check.problem(place, repr(label), "letters, digits, '.', '-' and '_': names of run folders hold it")
        elif known.setdefault(label.casefold(), place) is not place:
            check.problem(place, f"{label} twice", "every value once")
        else:
            yield _Value(label, label if isinstance(key, str) or isinstance(values[key], str) else axis + label, place)


def _label(value: Any) -> str | None:
    """The label of a plain value; None for others."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else None


def _read_excluded(check: Checker, content: Any, axes: Mapping[str, Sequence[_Value]]) -> list[dict[str, str]]:
    """Combinations that are left out, each by the labels of some axes."""
    if not isinstance(content, Mapping) or EXCLUDE not in content:
        return []
    excluded = []
    for index, entry in enumerate(check.entries(content[EXCLUDE], (KEY, EXCLUDE), "combinations")):
        path: KeyPath = (KEY, EXCLUDE, index)
        combination = check.mapping(entry, path, list(axes))
        for axis, value in combination.items():
            labels = [each.label for each in axes[axis]]
            if _label(value) not in labels:
                check.problem((*path, axis), describe(value), f"one of {', '.join(labels)}")
        if not combination:
            check.problem(path, "no axis", "values of at least one axis", "an empty entry would exclude every variant")
        excluded.append({axis: _label(value) or "" for axis, value in combination.items()})
    return excluded


def _check_placeholders(check: Checker, source: YamlFile, axes: Mapping[str, Sequence[_Value]]) -> None:
    """Add a problem for every placeholder without an axis, and for every axis that nothing uses."""
    used = set()
    for path, value in _walk(source.data, ()):
        if path[:2] == (KEY, EXCLUDE):
            continue
        if isinstance(value, str) and (named := _PLACEHOLDER.fullmatch(value)):
            used.add(named[1])
            inside = path[:2] if path[0] == KEY else ()
            if named[1] not in axes:
                close = nearest(named[1], list(axes))
                hint = f"did you mean ${close}?" if close else ""
                check.problem(path, repr(value), f"an axis of the matrix: {', '.join(axes)}", hint)
            elif inside and list(axes).index(named[1]) <= list(axes).index(str(inside[1])):
                check.problem(path, repr(value), "an axis that stands below the one whose value uses it")
    for axis in axes:
        if axis not in used:
            check.problem((KEY, axis), "an axis that nothing uses", f"the value ${axis} somewhere in the file")


def _walk(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    yield path, value
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _walk(each, (*path, key))
    elif isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from _walk(each, (*path, index))


def _combine(
    axes: Mapping[str, Sequence[_Value]], excluded: Sequence[Mapping[str, str]]
) -> Iterator[dict[str, _Value]]:
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        if not any(all(chosen[axis].label == label for axis, label in each.items()) for each in excluded):
            yield chosen


def _fill(source: YamlFile, chosen: Mapping[str, _Value]) -> Expansion:
    lines: dict[KeyPath, int] = {}
    content = {key: _resolve(source, (key,), (key,), chosen, lines) for key in source.data if key != KEY}
    if isinstance(content.get("name"), str):
        content["name"] = "-".join([content["name"], *(value.suffix for value in chosen.values())])
    lines[()] = source.line(())
    choice = {axis: value.label for axis, value in chosen.items()}
    return Expansion(replace(source, data=content, lines=lines), choice)


def _resolve(
    source: YamlFile, origin: KeyPath, path: KeyPath, chosen: Mapping[str, _Value], lines: dict[KeyPath, int]
) -> Any:
    """The value at ``origin`` of the file with its placeholders filled in; ``path``: where it will stand.

    What is filled in keeps the lines of the axis, where a mistake in it would have to be mended.
    """
    value: Any = source.data
    for part in origin:
        value = value[part]
    if isinstance(value, str) and (named := _PLACEHOLDER.fullmatch(value)):
        return _resolve(source, chosen[named[1]].path, path, chosen, lines)
    if origin in source.lines:
        lines[path] = source.lines[origin]
    if isinstance(value, Mapping):
        return {key: _resolve(source, (*origin, key), (*path, key), chosen, lines) for key in value}
    if isinstance(value, tuple):
        return tuple(_resolve(source, (*origin, i), (*path, i), chosen, lines) for i in range(len(value)))
    return value


def merge_problems(found: Sequence[tuple[Mapping[str, str], Sequence[Problem]]]) -> list[Problem]:
    """The problems of all variants, each once; one that only some variants have says for which the first time."""
    first: dict[Problem, Mapping[str, str]] = {}
    counts: dict[Problem, int] = {}
    for choice, problems in found:
        for problem in dict.fromkeys(problems):
            first.setdefault(problem, choice)
            counts[problem] = counts.get(problem, 0) + 1
    return [
        problem
        if counts[problem] == len(found)
        else replace(problem, found=f"{problem.found} (with {describe_choice(choice)})")
        for problem, choice in first.items()
    ]
