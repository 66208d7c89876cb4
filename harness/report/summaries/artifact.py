"""What would be shipped, and how far it is from what was measured."""

from __future__ import annotations

from harness.records import Measurement, Note, Run

_LEADS = {
    "saved": (
        "The variant was written as it would be shipped, into the folder artifact beside this file, and read back in a "
        "process that knows nothing of this run. Below is how far that is from the model in memory."
    ),
    "checkpoint": "The variant was loaded from these files with no step on top, so what would be shipped was measured.",
}


def lead(run: Run) -> str:
    """What the files are; empty where there are none."""
    return _LEADS[run.artifact.kind] if run.artifact else ""


def numbers(run: Run) -> list[Measurement]:
    """Every measurement of what would be shipped, in the order of measurement."""
    return [m for m in run.measurements if m.name.startswith("artifact.")]


def reasons(run: Run) -> list[str]:
    """Why some of it could not be measured, each reason once."""
    return list(dict.fromkeys(s.reason for s in run.skipped if s.measure.startswith("artifact")))


def notes(run: Run) -> list[Note]:
    """What a reader must know beside the numbers."""
    return [note for note in run.notes if note.topic == "artifact"]
