"""Whether both sides of a pair are the same model, and whether all files that a user would load are the same."""

from __future__ import annotations

from collections.abc import Iterator

from harness.models.loaded import LoadedModel
from harness.records import Note

_MOST = 6


def note_same_model(reference: LoadedModel, variant: LoadedModel) -> Iterator[Note]:
    """A warning if both sides compute the same. "The same bytes" needs the same files, unread tensors included."""
    if not reference.identity.same_as(variant.identity):
        return
    files = find_other_files(reference, variant)
    if files:
        shown = ", ".join(files[:_MOST]) + (f" and {len(files) - _MOST} more" if len(files) > _MOST else "")
        text = (
            "reference and variant compute the same: weights, configuration and tokenizer are equal as loaded, so "
            f"every change is zero by construction; their folders are not the same: {shown}"
        )
    else:
        text = "reference and variant are the same bytes: every change is zero by construction"
    yield Note(topic="same model", text=text, level="warn")


def find_other_files(reference: LoadedModel, variant: LoadedModel) -> list[str]:
    """Names of the files, of those that a user would load, that differ or that one side alone has."""
    before, after = ({file.path.name: file.sha256 for file in side.files} for side in (reference, variant))
    names = sorted(before.keys() | after.keys())
    return [name for name in names if before.get(name) != after.get(name)]
