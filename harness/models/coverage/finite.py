"""NaN and infinity on the two sides of a pair: who fails by them, whatever a token multiplies."""

from __future__ import annotations

from harness.errors import ModelError
from harness.models.loaded import LoadedModel
from harness.modules.non_finite import NonFinite
from harness.records import Note


def all_non_finite(side: LoadedModel) -> dict[str, NonFinite]:
    """Every tensor of a side with NaN or infinity, by name: of the model, and those that its class leaves in files."""
    left = [each.non_finite for each in side.unread if each.non_finite is not None]
    return {each.tensor: each for each in (*side.non_finite, *left)}


def compare_finite(reference: LoadedModel, variant: LoadedModel) -> tuple[tuple[NonFinite, ...], tuple[Note, ...]]:
    """What fails the variant, and what is said of values that stand on both sides.

    A tensor whose NaN and infinities are the very same on both sides (a mask) fails neither. Raises ModelError for
    others of the reference: nothing can be compared with a damaged model.
    """
    before, after = all_non_finite(reference), all_non_finite(variant)
    same = {name for name in before.keys() & after.keys() if before[name].sha256 == after[name].sha256}
    if damaged := [each for name, each in before.items() if name not in same]:
        raise ModelError(
            f"{reference.name}: {describe_tensors(damaged)}, in the reference and not so in {variant.name}: no variant "
            "can be judged by it, even where no token reaches these weights; fetch or export the reference again"
        )
    failing = tuple(each for name, each in after.items() if name not in same)
    notes = []
    if same:
        text = f"{describe_tensors([after[name] for name in sorted(same)])}, the very same on both sides"
        notes.append(Note(topic="non-finite weights", text=text))
    return failing, tuple(notes)


def describe_tensors(found: list[NonFinite] | tuple[NonFinite, ...], most: int = 4) -> str:
    """ "2 tensors hold NaN or infinity (model.embed_tokens.weight, rows 1400–1409; …)"."""
    shown = "; ".join(map(str, found[:most])) + (f"; and {len(found) - most} more" if len(found) > most else "")
    return f"{len(found)} tensor{'s hold' if len(found) > 1 else ' holds'} NaN or infinity ({shown})"
