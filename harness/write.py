"""Write: writes run.json and the outputs made from it, and reads a finished run again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from harness import plugins
from harness.errors import HarnessError, TableError, WriteError
from harness.measures import load_metrics
from harness.records import FAILURE_FILE, SCHEMA_VERSION, Failure, Run, schema_1
from harness.records.conclusion import conclusion
from harness.report.display import clean
from harness.system.files import sync_folder, write_atomic
from harness.system.foreign import guard
from harness.system.masking import mask
from harness.tables.access import Tables
from harness.tables.store import StoreReader
from harness.writers import RUN_FILE, Writer

if TYPE_CHECKING:
    import pandas as pd


def write_run(run: Run, folder: Path) -> Path:
    """Write run.json atomically. Raises WriteError, also if the run contains what JSON cannot represent (NaN,
    infinity)."""
    path = folder / RUN_FILE
    write_atomic(path, encode(run))
    return path


def write_failure(failure: Failure, folder: Path, writers: Sequence[Writer] = ()) -> list[Path]:
    """Write failure.json atomically, and the files of those writers that can say why there is no run.

    If a writer fails, the others still write; then WriteError is raised with every failure.
    """
    path = folder / FAILURE_FILE
    shown = _clean(failure)
    text = json.dumps(shown.model_dump(), sort_keys=True, indent=2, ensure_ascii=False)
    write_atomic(path, f"{text}\n".encode())
    return [path, *write_failure_outputs(shown, folder, writers)]


def _clean(failure: Failure) -> Failure:
    """The failure without secrets, and without characters that mislead a reader."""
    faults = (each.model_copy(update={k: clean(getattr(each, k), 2000) for k in ("file", "message")})
              for each in failure.faults)  # fmt: skip
    message = "\n".join(clean(line, 2000) for line in failure.message.splitlines())
    source, name = clean(failure.source, 1000), clean(failure.name)
    return failure.model_copy(update={"name": name, "message": message, "source": source, "faults": tuple(faults)})


def write_failure_outputs(failure: Failure, folder: Path, writers: Sequence[Writer]) -> list[Path]:
    """Let every writer say why there is no run; returns the files of those that can. Raises WriteError as above."""
    return _let_write(writers, lambda writer: writer.write_failure(failure, folder), folder, needed=False)


def encode(run: Run) -> bytes:
    """The run as UTF-8 JSON (RFC 8259): two-space indent, sorted keys, shortest exact floats, newline at the end.

    Hub tokens and home folders in paths or settings are masked. Raises WriteError for NaN or infinity, which only the
    free-form part ``asked`` could contain: records refuse them.
    """
    # Not pydantic's own JSON mode: it would write null where NaN stands, and say nothing.
    try:
        text = json.dumps(_mask(run.model_dump()), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode()
    except (ValueError, TypeError) as error:
        raise WriteError(
            f"{RUN_FILE}: the run {run.name!r} contains a value that JSON cannot represent: {error}"
        ) from error


def read_back(run: Run) -> Run:
    """The run as it will be read back once it is written. Raises WriteError where run.json could not hold it."""
    try:
        return Run.model_validate_json(encode(run))
    except ValidationError as error:
        raise WriteError(f"{RUN_FILE}: the run {run.name!r} cannot be read back: {_first_problems(error)}") from error


def _mask(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {_mask(key): _mask(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(item) for item in value]
    return value


def write_outputs(
    run: Run,
    folder: Path,
    writers: Sequence[Writer],
    tables: Tables | None = None,
    made: Mapping[str, bytes] | None = None,
) -> list[Path]:
    """Let every writer write into ``folder``; returns the files in the order of ``writers``.

    tables: those of the run, by default those in ``folder``; missing or damaged tables leave the parts that show them
    empty, with the reason. made: files that another process has made of the same run and tables, by name. An old file
    of the same name is removed first. If a writer fails, the others still write; then WriteError is raised with every
    failure.
    """
    tables = tables if tables is not None else StoredTables(folder / "tables", run.data_key)
    for writer in writers:
        _remove(folder / writer.file_name)
    ready = made or {}

    def act(writer: Writer) -> Path:
        path = folder / writer.file_name
        if writer.file_name not in ready:
            return writer.write(run, tables, folder)
        write_atomic(path, ready[writer.file_name])
        return path

    return _let_write(writers, act, folder)


def _let_write(
    writers: Sequence[Writer], act: Callable[[Writer], Path | None], folder: Path, needed: bool = True
) -> list[Path]:
    """The files that ``act`` has every writer write into ``folder``. needed: a writer without a file has failed."""
    written: list[Path] = []
    failures: list[str] = []
    for writer in writers:
        try:
            with guard(f"the writer {writer.kind}"):
                wrote = act(writer) is not None
            if (wrote or needed) and not (folder / writer.file_name).is_file():
                raise WriteError(f"it wrote no file {writer.file_name} into {folder}")
            written += [folder / writer.file_name] if wrote or needed else []
        except HarnessError as error:
            failures.append(f"{writer.kind}: {error}")
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; the others must still write
            failures.append(f"{writer.kind}: {type(error).__name__}: {error}")
    if failures:
        raise WriteError("not every output could be written:\n" + "\n".join(failures))
    return written


def remove_outputs(folder: Path, writers: Sequence[Writer]) -> list[str]:
    """Delete run.json and the files of every writer in ``folder``, so that no old output remains next to a new verdict.

    writers: those requested now. The files of every other installed writer are deleted, too, because an earlier check
    may have requested them; returns, for each of these that does not load, the reason. Raises WriteError for a file
    that cannot be deleted.
    """
    # run.json first: whatever may stay then, no verdict does.
    names, broken = [RUN_FILE, FAILURE_FILE, *(writer.file_name for writer in writers)], []
    for kind in plugins.names(Writer):
        try:
            names.append(plugins.load(Writer, kind).file_name)
        except Exception as error:  # noqa: BLE001 - importing a plugin that nobody asked for may raise anything
            broken.append(f"the writer {kind} does not load, so a file that it wrote earlier remains: {error}")
    for name in dict.fromkeys(names):
        _remove(folder / name)
    try:
        sync_folder(folder)
    except OSError as error:
        raise WriteError(f"{folder}: an earlier result could not be removed: {error.strerror}") from error
    return broken


def add_suited(writers: Sequence[Writer], environment: Mapping[str, str]) -> tuple[Writer, ...]:
    """The writers asked for, and those that suit the environment without being asked for."""
    added = list(writers)
    for kind in plugins.names(Writer):
        try:
            cls = plugins.load(Writer, kind)
            if cls.suits(environment) and cls.file_name not in {writer.file_name for writer in added}:
                added.append(cls())
        except Exception:  # noqa: BLE001, S112 - nobody asked for it; importing a plugin may raise anything
            continue
    return tuple(added)


def announce(
    run: Run | Failure, folder: Path | None, writers: Sequence[Writer], environment: Mapping[str, str]
) -> tuple[str, str]:
    """What the writers of a finished run, or of one that could not be made, show where it runs, and what of it failed,
    for people; no verdict changes."""
    lines, failures = [], []
    for writer in writers:
        try:
            with guard(f"the writer {writer.kind}"):
                if isinstance(run, Failure):
                    lines.append(writer.announce_failure(run, folder, environment))
                elif folder is not None:
                    lines.append(writer.announce(run, folder, environment))
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; everything is in the folder
            failures.append(f"{writer.kind}: {error}")
    return "".join(lines), "\n".join(failures)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: an earlier result could not be removed: {error.strerror}") from error


def writers_of(run: Run, kinds: Sequence[str]) -> list[Writer]:
    """The writers of these names, each with its settings under ``outputs`` in the run's plan, else its defaults.

    Raises UnknownPluginError for an unknown name, and HarnessError for a writer that does not load or needs settings.
    """
    asked = run.asked.get("outputs")
    entries = [entry for entry in asked if isinstance(entry, dict)] if isinstance(asked, list | tuple) else []
    settings = {str(entry.get("writer")): entry for entry in entries}
    writers = []
    for kind in dict.fromkeys(kinds):
        cls = plugins.load(Writer, kind)
        given = {key: value for key, value in settings.get(kind, {}).items() if key != "writer"}
        try:
            writers.append(cls.model_validate_json(json.dumps(given)))
        except ValidationError as error:
            what = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise HarnessError(
                f"writer {kind!r}: its settings do not fit ({what}); give them under outputs:"
            ) from error
    return writers


def write_again(folder: Path, kinds: Sequence[str]) -> tuple[Run | Failure, list[Writer], list[Path]]:
    """Write outputs of the run in ``folder`` again, or of why there is none; returns what they are about, their
    writers and their paths. Raises HarnessError."""
    if failure := read_failure(folder):
        writers = [plugins.load(Writer, kind)() for kind in dict.fromkeys(kinds)]
        written = write_failure_outputs(failure, folder, writers)
        if not written:
            raise HarnessError(f"{folder}: {', '.join(kinds)}: there is no run, because {failure.message}")
        return failure, writers, written
    run = read_run(folder)
    writers = writers_of(run, kinds)
    return run, writers, write_outputs(run, folder, writers)


class StoredTables:
    """The tables of a run, opened at first use. problem: why one of them could not be read; empty so far.

    reader: what has them open.
    """

    def __init__(self, folder: Path, data_key: str, reader: StoreReader | None = None) -> None:
        self.folder, self.data_key, self._given = folder, data_key, reader
        self.problem = ""

    @cached_property
    def _reader(self) -> StoreReader:
        return self._given or StoreReader(self.folder, self.data_key)

    def suites(self) -> tuple[str, ...]:
        """Names of the suites that have tables. Raises TableError."""
        with self._keep_problem():
            return self._reader.suites()

    def read(self, suite: str, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """One table, or None if the run did not write it. Raises TableError."""
        with self._keep_problem():
            return self._reader.read(suite, table, columns)

    @contextmanager
    def _keep_problem(self) -> Iterator[None]:
        try:
            yield
        except TableError as error:
            self.problem = self.problem or str(error)
            raise


def read_run(folder: Path) -> Run:
    """Read the run in ``folder`` (or from the run.json given itself).

    Raises HarnessError naming the file if there is none, or if it is damaged (not UTF-8, not JSON, truncated, duplicate
    keys, NaN), foreign (not written by this program), or of another schema version.
    """
    path = folder if folder.suffix == ".json" else folder / RUN_FILE
    content = _read_json(path)
    if not isinstance(content, dict) or "schema_version" not in content:
        raise HarnessError(f"{path}: found no schema_version, expected the run.json of a finished run")
    version = content["schema_version"]
    if type(version) is int and version == 1:
        declared = [metric.model_dump(mode="json") for metric in load_metrics()]
        content = schema_1.upgrade(content) | {"metrics": declared}
    elif type(version) is not int or version != SCHEMA_VERSION:
        raise HarnessError(
            f"{path}: found schema_version {version!r}, expected {SCHEMA_VERSION}; "
            "read it with the release that wrote it, or run the check again"
        )
    try:
        # The JSON mode of strict validation takes lists for tuples, which a Python dict could not give.
        run = Run.model_validate_json(json.dumps(content, allow_nan=False))
    except (ValidationError, ValueError) as error:
        raise HarnessError(f"{path}: {_first_problems(error)}") from error
    concluded = conclusion(run.verdicts)
    if (run.verdict, run.exit_code) != concluded[:2]:
        raise HarnessError(
            f"{path}: verdict, exit_code: found {run.verdict!r}, {run.exit_code}, expected {concluded.verdict!r}, "
            f"{concluded.exit_code} from its verdicts; the file was changed after it was written: run the check again"
        )
    return run


def read_failure(folder: Path) -> Failure | None:
    """Why there is no run in ``folder``; None where there is one, or nothing is known. Raises HarnessError."""
    path = folder / FAILURE_FILE
    if os.path.lexists(folder / RUN_FILE) or not path.is_file():
        return None
    try:
        return Failure.model_validate_json(json.dumps(_read_json(path)))
    except ValidationError as error:
        raise HarnessError(f"{path}: {_first_problems(error)}") from error


def _read_json(path: Path) -> Any:
    try:
        text = path.read_bytes().decode("utf-8")
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise HarnessError(f"{path}: not found; expected the folder of a finished run") from error
    except OSError as error:
        raise HarnessError(f"{path}: could not be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise HarnessError(f"{path}: damaged: not UTF-8 at byte {error.start}; run the check again") from error
    except RecursionError as error:
        raise HarnessError(f"{path}: damaged or foreign: nested too deeply") from error
    except ValueError as error:
        raise HarnessError(f"{path}: damaged: {error}; run the check again") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _first_problems(error: Exception, most: int = 3) -> str:
    """Where the content violates the schema, without the content itself (it may be long or hostile)."""
    if not isinstance(error, ValidationError):
        return str(error)
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [f"{'.'.join(str(part) for part in item['loc']) or 'run'}: {item['msg']}" for item in problems[:most]]
    more = f" (and {len(problems) - most} more)" if len(problems) > most else ""
    return "found content that does not fit the schema of run.json: " + "; ".join(lines) + more
