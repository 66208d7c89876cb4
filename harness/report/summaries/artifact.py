"""The artifact: its files, and its difference from the model that was measured in memory."""

from __future__ import annotations

from harness.records import Measurement, Note, Run

_LEADS = {
    "saved": (
        "The variant was saved to the folder artifact next to this file and reloaded in a fresh process. The table "
        "compares the reloaded model with the model in memory."
    ),
    "checkpoint": "The variant was loaded from these files and not changed, so the measured model is the artifact.",
}


def describe(run: Run) -> str:
    """The origin of the files; empty if there are none."""
    return _LEADS[run.artifact.kind] if run.artifact else ""


def select_measurements(run: Run) -> list[Measurement]:
    """Every measurement of the artifact, in the order of measurement."""
    return [m for m in run.measurements if m.name.startswith("artifact.")]


def collect_reasons(run: Run) -> list[str]:
    """Why some metrics could not be measured, each reason once."""
    return list(dict.fromkeys(s.reason for s in run.skipped if s.measure.startswith("artifact")))


def select_notes(run: Run) -> list[Note]:
    """Notes for the reader about the artifact."""
    return [note for note in run.notes if note.topic == "artifact"]
