"""Finds lm-eval tasks by name in task folders and single task files: the user's and the bundled ones.

Only names and data files are read from task files here; lm-eval itself constructs the tasks.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.errors import DataError
from harness.plugins import nearest

SUFFIXES = (".yaml", ".yml")
"""What the path of a task file ends with; any other entry is the name of a task."""


class FunctionName(str):
    """The text behind lm-eval's ``!function``: a Python file beside the task file, a dot, and a name in it."""

    __slots__ = ()


class _TaskLoader(yaml.SafeLoader):
    """Safe YAML loader in which lm-eval's ``!function`` tags are text: no user code runs."""


_TaskLoader.add_multi_constructor("!", lambda loader, suffix, node: FunctionName(getattr(node, "value", suffix)))


@dataclass(frozen=True)
class TaskFiles:
    """The YAML files in some places (folders, and single files), by the name of the task or group that they declare."""

    places: tuple[Path, ...]
    declared: dict[str, list[Path]] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)

    @property
    def folders(self) -> list[Path]:
        """The places that are folders."""
        return [place for place in self.places if not os.path.isfile(place)]

    def find(self, name: str) -> Path | None:
        """The one file that declares ``name``; None if no file does. Raises DataError if several do."""
        paths = self.declared.get(name, [])
        if len(paths) > 1:
            places = " and ".join(map(str, paths))
            raise DataError(f"task {name} is declared in {places}: rename one, so that it is clear which one is meant")
        return paths[0] if paths else None

    def explain_unknown(self, name: str, others: Sequence[str]) -> DataError:
        """The error for an unknown name, with close matches and the files that could not be read."""
        close = nearest(name, [*self.declared, *others])
        text = f"no task is called {name!r}" + (f"; did you mean {close}?" if close else "")
        text += f" (looked in {', '.join(map(str, self.places))} and among the tasks of lm-eval)"
        for path, reason in self.unreadable.items():
            text += f"\n  {path} could not be read: {reason}"
        return DataError(text)


def read_task_files(places: Sequence[Path]) -> TaskFiles:
    """Index single task files and the ``*.yaml`` files under folders. Raises DataError for what does not exist."""
    files = TaskFiles(tuple(places))
    for place in places:
        if not os.path.exists(place):
            raise DataError(
                f"include: found {place}, expected a folder with lm-eval task files (*.yaml), or such a file"
            )
        for path in [place] if os.path.isfile(place) else sorted(place.rglob("*.yaml")):
            try:
                content = content_of(path)
            except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
                files.unreadable[path] = " ".join(str(error).split())
                continue
            for key in ("group", "task"):
                if isinstance(name := content.get(key), str):
                    files.declared.setdefault(name, []).append(path)
                    break
    return files


def files_sha256(places: Sequence[Path]) -> str:
    """Hash of all task files, of the Python files in the same folders and of the local data files that they name."""
    digest = hashlib.sha256()
    for place in places:
        sources = _sources(place)
        data = [found for path in sources if path.suffix in SUFFIXES for found in _data_files(path)]
        for path in [*sources, *data]:
            digest.update(path.name.encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _sources(place: Path) -> list[Path]:
    """The task files and Python files of a folder; of a single file also those that it includes."""
    if os.path.isfile(place):
        return [place, *_included(place), *sorted(place.parent.glob("*.py"))]
    return sorted(p for p in place.rglob("*") if p.suffix in (".yaml", ".py") and p.is_file())


def _included(path: Path) -> list[Path]:
    """The files that a task file includes, directly or not; none from where a file cannot be read."""
    found: list[Path] = []
    waiting = [path]
    while waiting:
        with suppress(OSError, yaml.YAMLError, ValueError, RecursionError):
            current = waiting.pop()
            names = content_of(current).get("include", ())
            there = [current.parent / each for each in _strings([names])]
            new = [each for each in there if os.path.isfile(each) and each not in found]
            found += new
            waiting += new
    return found


def resolve_data_paths(value: Any, folder: Path) -> Any:
    """``data_files`` or ``data_dir`` of a task; relative paths that exist in ``folder`` become absolute."""
    if isinstance(value, str):
        there = folder / value
        return str(there) if not Path(value).is_absolute() and glob.glob(str(there)) else value
    if isinstance(value, dict):
        return {key: resolve_data_paths(one, folder) for key, one in value.items()}
    return [resolve_data_paths(one, folder) for one in value] if isinstance(value, (list, tuple)) else value


def content_of(path: Path) -> dict[str, Any]:
    """The keys of a task file; ``!function`` tags are text. Raises YAMLError, UnicodeDecodeError or ValueError."""
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TaskLoader)  # noqa: S506 - derived from SafeLoader
    if not isinstance(content, dict):
        raise ValueError("expected a mapping at the top level")
    return content


def _data_files(path: Path) -> Iterator[Path]:
    try:
        arguments = content_of(path).get("dataset_kwargs")
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError):
        return
    if isinstance(arguments, dict):
        for text in _strings(resolve_data_paths(arguments.get("data_files"), path.parent)):
            yield from (Path(found) for found in sorted(glob.glob(text)) if Path(found).is_file())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)
