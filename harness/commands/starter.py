"""The variant file that ``harness init`` writes: commented, and good to run as it stands."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from harness.errors import WriteError
from harness.system.yaml_values import CONTROL, plain

_HEAD = """\
# One compressed model beside the model it was made from.
#
#   harness check {file}   measures both on the same inputs, judges, and writes a report under runs/
#   harness list   shows every suite, gate, measure, rule and backend, with its settings
#
# Exit codes of check: 0 passed, 1 a blocking rule failed, 2 could not be run or judged, 3 inconclusive.

name: {name}

# The model to compare with: pocket (a small model that comes with the harness), a folder beside this file
# (./model), or a hub id; for a hub id add its commit as revision: to get the same files every time.
reference: {{model: {reference}, dtype: float32}}
"""

_COMPRESS = """
# What is done to it. The steps are applied in order to a copy of the reference.
variant:
  compress:
    - {backend: round_to_nearest, bits: 4, group_size: 128}
  # It is written as it would be shipped, into the folder artifact/ beside the report, read back in a fresh process, and
  # that is compared with what was measured. With artifact: none it is not; then the gate ship cannot judge it.
"""

_CHECKPOINT = """
# The compressed model: a checkpoint of its own. Steps of compression could follow under compress:.
variant: {{model: {variant}}}
"""

_TAIL = """
# The hardware it is meant for, to be told about formats that have no kernel there (names: harness list).
# target: cuda-9.0

# What is measured, on which documents: names of shipped suites, or files of your own (./my-suite.yaml).
suites: [{suite}]

# What must hold: names of shipped gates, or files of your own (./my-gate.yaml).
gates: [ship]

# What is written beside run.json (names: harness list); junit is for CI servers.
# outputs: [report_html, junit]
"""


def starter(reference: str = "pocket", variant: str = "", file: str = "variant.yaml") -> str:
    """The text of a variant file.

    reference: ``pocket``, a folder or a hub id. variant: the same for a checkpoint; empty: the reference is
    compressed. Folders are relative to the place of the file.
    """
    own = reference != "pocket" or bool(variant)
    name = _slug(variant or f"{reference}-w4-g128")
    head = _HEAD.format(file=_quoted(file), name=_quoted(name), reference=_quoted(reference))
    middle = _CHECKPOINT.format(variant=_quoted(variant)) if variant else _COMPRESS
    return head + middle + _TAIL.format(suite="standard" if own else "core")


def write_starter(file: Path, reference: str = "pocket", variant: str = "") -> None:
    """Write a starter for models whose folders are relative to the working directory.

    A file that exists is left alone. Raises WriteError.
    """
    text = starter(_beside(file, reference), _beside(file, variant), file.name)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise WriteError(f"{file} exists already; give another name: harness init NAME.yaml") from error
    except OSError as error:
        raise WriteError(f"{file} cannot be written: {error.strerror or error}") from error


def _beside(file: Path, model: str) -> str:
    """A folder as seen from where the file lies; anything else as it is."""
    if not model or model == "pocket" or os.path.isabs(model) or not os.path.isdir(model):
        return model
    relative = os.path.relpath(model, file.parent)
    return relative if relative.startswith(".") else f"./{relative}"


def _quoted(text: str) -> str:
    """Text as a YAML value: as it is where it cannot be misread, else in double quotes."""
    if re.fullmatch(r"[A-Za-z./][A-Za-z0-9_./-]*", text) and _is_text(text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def _is_text(unquoted: str) -> bool:
    """Whether YAML takes it for text without quotes: not ``true``, ``null`` or ``.inf``."""
    try:
        return isinstance(plain(unquoted), str)
    except ValueError:
        return False


def _slug(text: str) -> str:
    """A name for the run folder: the last part of a path or hub id, made safe as the name of a folder."""
    last = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    kept = re.sub(r"[^A-Za-z0-9._-]+|\.{2,}", "-", last).lstrip("._-")[:100]
    return kept or "variant"
