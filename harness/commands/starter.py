"""The variant file that ``harness init`` writes: commented, and it runs as it stands.

model headers ─┐
own texts ─────┴▶ what fits them (dtype, context, suite, gate) ─▶ variant.yaml
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.commands.first_look import (
    GROUP_SIZES,
    ModelLook,
    TextsLook,
    choose_context,
    count_tokens,
    describe_lengths,
    look_at_model,
    look_at_texts,
    write_collected,
)
from harness.commands.short_suite import short_suite
from harness.data.task_files import SUFFIXES
from harness.errors import PlanError, Problem, WriteError
from harness.planning.locating import explain_unknown_model
from harness.planning.task_paths import find_mistakes
from harness.records.plan import GGUF
from harness.system.yaml_values import CONTROL, parse_plain

FEWEST_FOR_SHIP = 72
"""Documents without which the gate ship cannot exclude five percent of broken ones, even where none is broken."""

_HEAD = """\
# Compares one compressed model with its original.
#
#   harness check {file}   measures both on the same inputs, judges, and writes a report under runs/
#   harness list   shows every suite, gate, measure, rule and backend, with its settings
#
# Exit codes of check: 0 passed, 1 a blocking rule failed, 2 not run or not judged, 3 inconclusive.

name: {name}

# The model to compare with: pocket (a small model bundled with the harness), a folder relative to this file
# (./model), or a hub id; for a hub id add its commit as revision: to get the same files every time.
# dtype: in which both sides are computed; auto: that of the model{found_dtype}. Others: float32, float16, bfloat16.
reference: {{model: {reference}, dtype: auto}}
"""

_COMPRESS = """
# Compression steps, applied in order to a copy of the reference.{why_scales}
variant:
  compress:
    - {{backend: round_to_nearest, bits: 4, {scales}}}
  # The result is saved to the folder artifact/ beside the report, reloaded in a fresh process, and compared with the
  # model that was measured. With artifact: none it is not saved, and the gate ship cannot judge it.
"""

_CHECKPOINT = """
# The compressed model: a separate checkpoint. Further compression steps can follow under compress:.
variant: {{model: {variant}}}
"""

_TEXTS = """
# The texts on which both models are measured: {found}.
{source}# context: tokens of each text that are read{why_context}.
# bos: auto begins texts as the reference's tokenizer does.
documents: {{data: {data}, text_field: {field}, context: {context}, bos: auto}}
"""

_TASKS = """
# lm-eval tasks, scored item by item on both sides.
tasks: [{tasks}]
"""

_TAIL = """
# The target hardware, to report number formats that have no kernel there (names: harness list).
# target: cuda-9.0

# What to measure, on which documents: names of bundled suites, or your own files (./my-suite.yaml).{why_suite}
suites: [{suite}]

# What must hold: names of bundled gates, or your own files (./my-gate.yaml).{why_gate}
gates: [{gate}]

# What is written beside run.json (names: harness list); junit is for CI servers.
# outputs: [report_html, junit]
"""


def starter(
    reference: str = "pocket",
    variant: str = "",
    file: str = "variant.yaml",
    model: ModelLook | None = None,
    texts: TextsLook | None = None,
    tasks: Sequence[str] = (),
    suite: str = "texts",
) -> str:
    """The text of a variant file.

    reference: ``pocket``, a folder or a hub id. variant: the same for a checkpoint; empty: the reference is
    compressed. Folders are relative to the file. model, texts: what was found out about the reference and own texts.
    suite: the one that measures on them.
    """
    own, model = reference != "pocket" or bool(variant), model or ModelLook()
    scales = f"g{model.group_size}" if model.group_size else "channel"
    head = _HEAD.format(
        file=_quote(file),
        name=_quote(_slug(variant or f"{reference}-w4-{scales}")),
        reference=_quote(reference),
        found_dtype=f", here {model.dtype}" if model.folder is not None else "",
    )
    middle = _CHECKPOINT.format(variant=_quote(variant)) if variant else _compress(model)
    named = _TASKS.format(tasks=", ".join(map(_quote, tasks))) if tasks else ""
    return head + middle + (_texts(texts, model) if texts else "") + named + _tail(own, texts, tasks, suite)


def _compress(model: ModelLook) -> str:
    """The step, with scales that fit the shapes of the model."""
    if model.group_size is None:
        why = f"\n# One scale a channel: groups of {GROUP_SIZES[-1]} do not divide the inputs of every linear layer."
        return _COMPRESS.format(scales="granularity: channel", why_scales=why)
    fits = "\n# group_size: the largest of 128, 64 and 32 that divides the inputs of every linear layer."
    why = fits if model.folder is not None and model.group_size < GROUP_SIZES[0] else ""
    return _COMPRESS.format(scales=f"group_size: {model.group_size}", why_scales=why)


def _texts(texts: TextsLook, model: ModelLook) -> str:
    tokens = count_tokens(texts.documents, model)
    source = ""
    if texts.collected:
        files = f"{len(texts.sources)} file{'s' * (len(texts.sources) > 1)}"
        source = f"# Collected by harness init from {files}; kind: names the file of each text.\n"
    context = choose_context(tokens, model.positions)
    limited = model.positions == context and context < max(tokens)
    return _TEXTS.format(
        found=f"{len(texts.documents)} documents, {describe_lengths(tokens)}",
        source=source,
        why_context=f", here the most that the model reads ({context})" if limited else "",
        data=_quote(f"./{texts.file.name}" if texts.collected else str(texts.file)),
        field=_quote(texts.text_field),
        context=context,
    ).replace("text_field: text, ", "")


def _tail(own: bool, texts: TextsLook | None, tasks: Sequence[str], suite: str) -> str:
    if texts is None and not tasks:
        return _TAIL.format(suite="standard" if own else "core", gate="ship", why_suite="", why_gate="")
    few = texts is not None and len(texts.documents) < FEWEST_FOR_SHIP
    scored = "and scores the tasks" if tasks else "without tasks, so none are gated, and the verdict says so"
    why_gate = "\n# ship: fit to replace the reference in ordinary use."
    if few:
        why_gate = f"\n# smoke: in working order, no more. With {FEWEST_FOR_SHIP} texts or more, ask for ship."
    return _TAIL.format(
        suite=_quote(suite),
        gate="smoke" if few else "ship",
        why_suite=f"\n# texts: everything but timing on the texts above, {scored}.",
        why_gate=why_gate,
    )


def write_starter(
    file: Path, reference: str = "pocket", variant: str = "", documents: Sequence[Path] = (), tasks: Sequence[str] = ()
) -> list[str]:
    """Write a starter for models whose folders are relative to the working directory; returns what was found, in
    sentences.

    documents: files or folders with the user's own texts. tasks: names, or paths of task files. An existing file is
    never overwritten. Raises WriteError, DataError for texts that cannot be read, and PlanError for task files with
    mistakes.
    """
    _check_models(reference, variant)
    model = ModelLook() if reference == "pocket" else look_at_model(reference)
    texts = look_at_texts(documents, file) if documents else None
    _check_task_files(tasks)
    named = texts and replace(texts, file=_texts_path(file, texts))
    listed = [_relative_to(file, each, is_file=True) if each.endswith(SUFFIXES) else each for each in tasks]
    short = short_suite(model.positions) if texts else ""
    suite = f"./{_suite_beside(file).name}" if short else "texts"
    text = starter(_relative_to(file, reference), _relative_to(file, variant), file.name, model, named, listed, suite)
    if short:
        _write_new(_suite_beside(file), short)
    _write_new(file, text)
    if texts is not None and texts.collected:
        try:
            write_collected(texts)
        except OSError as error:
            file.unlink()
            raise WriteError(f"{texts.file} cannot be written: {error.strerror or error}; {file} was not") from error
    said = _findings(reference, variant, model, texts, tasks)
    if short:
        said.append(
            f"wrote {_suite_beside(file)}: the suite texts with generated texts that fit {model.positions} tokens"
        )
    return said


def _suite_beside(file: Path) -> Path:
    return file.with_name(f"{file.stem}-suite.yaml")


def _check_models(reference: str, variant: str) -> None:
    """Raises PlanError for paths of models where there is none."""
    named = {"--reference": reference, "--variant": variant}
    found = {option: explain_unknown_model(name, Path(), ("pocket",)) for option, name in named.items() if name}
    if problems := [Problem(option, None, "", *unknown) for option, unknown in found.items() if unknown]:
        raise PlanError(problems)


def _check_task_files(tasks: Sequence[str]) -> None:
    """Raises PlanError with every mistake of the task files among the tasks."""
    problems: list[Problem] = []
    for path in (Path(each) for each in tasks if each.endswith(SUFFIXES)):
        if path.is_file():
            problems += find_mistakes(path)
        else:
            problems.append(Problem("--tasks", None, "", f"{str(path)!r}: no such file", "an lm-eval task file"))
    if problems:
        raise PlanError(problems)


def _texts_path(file: Path, texts: TextsLook) -> Path:
    return texts.file if texts.collected else Path(_relative_to(file, str(texts.file), is_file=True))


def _findings(
    reference: str, variant: str, model: ModelLook, texts: TextsLook | None, tasks: Sequence[str]
) -> list[str]:
    """What was found and chosen, and what is missing."""
    said = []
    if model.folder is not None and reference != "pocket":
        reads = f", reads {model.positions} tokens" if model.positions else ""
        said.append(f"reference: {model.dtype}{reads}")
    if texts is not None:
        tokens = count_tokens(texts.documents, model)
        said.append(f"texts: {len(texts.documents)} documents in {texts.text_field!r}, {describe_lengths(tokens)}")
        if len(texts.documents) < FEWEST_FOR_SHIP:
            said.append(f"the gate is smoke: ship needs {FEWEST_FOR_SHIP} texts, found {len(texts.documents)}")
        if not tasks:
            said.append("no tasks are gated; name lm-eval tasks with --tasks")
    elif (reference != "pocket" or variant) and _is_offline():
        said.append(
            "texts are missing: the suite standard reads from the hub, which is switched off (HF_HUB_OFFLINE); give "
            "your own with --documents (.jsonl, .txt, .csv, .parquet or a folder)"
        )
    return said


def _is_offline() -> bool:
    """Whether the hub is switched off."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def _write_new(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise WriteError(f"{file} already exists; give another name: harness init NAME.yaml") from error
    except OSError as error:
        raise WriteError(f"{file} cannot be written: {error.strerror or error}") from error


def _relative_to(file: Path, model: str, is_file: bool = False) -> str:
    """A folder (or file) as a path relative to the file; anything else unchanged."""
    there = os.path.isfile(model) if is_file or model.endswith(GGUF) else os.path.isdir(model)
    if not model or model == "pocket" or os.path.isabs(model) or not there:
        return model
    relative = os.path.relpath(model, file.parent)
    return relative if relative.startswith(".") else f"./{relative}"


def _quote(text: str) -> str:
    """Text as a YAML value: unquoted if it is unambiguous, else in double quotes."""
    if re.fullmatch(r"[A-Za-z./][A-Za-z0-9_./-]*", text) and _is_text(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def _is_text(unquoted: str) -> bool:
    """Whether YAML reads it as text without quotes: not ``true``, ``null`` or ``.inf``."""
    try:
        return isinstance(parse_plain(unquoted), str)
    except ValueError:
        return False


def _slug(text: str) -> str:
    """A name for the run folder: the last part of a path or hub id, with characters that are safe in file names."""
    last = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    kept = re.sub(r"[^A-Za-z0-9._-]+|\.{2,}", "-", last).lstrip("._-")[:100]
    return kept or "variant"
