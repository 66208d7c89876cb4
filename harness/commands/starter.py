"""The variant file that ``harness init`` writes: commented and ready to run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from harness.errors import WriteError
from harness.system.yaml_values import CONTROL, parse_plain

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
reference: {{model: {reference}, dtype: float32}}
"""

_COMPRESS = """
# Compression steps, applied in order to a copy of the reference.
variant:
  compress:
    - {backend: round_to_nearest, bits: 4, group_size: 128}
  # The result is saved to the folder artifact/ beside the report, reloaded in a fresh process, and compared with the
  # model that was measured. With artifact: none it is not saved, and the gate ship cannot judge it.
"""

_CHECKPOINT = """
# The compressed model: a separate checkpoint. Further compression steps can follow under compress:.
variant: {{model: {variant}}}
"""

_TAIL = """
# The target hardware, to report number formats that have no kernel there (names: harness list).
# target: cuda-9.0

# What to measure, on which documents: names of bundled suites, or your own files (./my-suite.yaml).
suites: [{suite}]

# What must hold: names of bundled gates, or your own files (./my-gate.yaml).
gates: [ship]

# What is written beside run.json (names: harness list); junit is for CI servers.
# outputs: [report_html, junit]
"""


def starter(reference: str = "pocket", variant: str = "", file: str = "variant.yaml") -> str:
    """The text of a variant file.

    reference: ``pocket``, a folder or a hub id. variant: the same for a checkpoint; empty: the reference is
    compressed. Folders are relative to the file.
    """
    own = reference != "pocket" or bool(variant)
    name = _slug(variant or f"{reference}-w4-g128")
    head = _HEAD.format(file=_quote(file), name=_quote(name), reference=_quote(reference))
    middle = _CHECKPOINT.format(variant=_quote(variant)) if variant else _COMPRESS
    return head + middle + _TAIL.format(suite="standard" if own else "core")


def write_starter(file: Path, reference: str = "pocket", variant: str = "") -> None:
    """Write a starter for models whose folders are relative to the working directory.

    An existing file is never overwritten. Raises WriteError.
    """
    text = starter(_relative_to(file, reference), _relative_to(file, variant), file.name)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise WriteError(f"{file} already exists; give another name: harness init NAME.yaml") from error
    except OSError as error:
        raise WriteError(f"{file} cannot be written: {error.strerror or error}") from error


def _relative_to(file: Path, model: str) -> str:
    """A folder as a path relative to the file; anything else unchanged."""
    if not model or model == "pocket" or os.path.isabs(model) or not os.path.isdir(model):
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
