"""Metadata of a shared pass: committed before the first batch, read back at the end.

It is stored in the tables ``documents``, ``pass``, ``notes`` and ``unpaired`` of every variant, so that a resumed pass
reports the same as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd

from harness.data.encoding import EncodedDocument
from harness.errors import TableError
from harness.lockstep.stages import SETUP
from harness.records import Note
from harness.tables.access import Sink

Name = Literal["eager", "compiled", "native", "triton"]
"""Of the kernels (see harness.lockstep.kernels)."""


@dataclass(frozen=True)
class Repeat:
    """Difference between two runs of one batch: mean KL in nats per token, and largest difference of a logit."""

    kl_mean: float
    max_abs_diff: float
    tokens: int

    def __str__(self) -> str:
        return (
            f"two runs of the same batch through the reference differ by a mean KL of {self.kl_mean:.2g} nats per "
            f"token and by at most {self.max_abs_diff:.2g} in a logit ({self.tokens} tokens)"
        )


@dataclass(frozen=True)
class PassReport:
    """Metadata of a pass for the report.

    notes: about the pass and the reference. variant_notes: about each variant, in order. unpaired: for each variant,
    the modules that were not compared, with the reason. expected: those of them that say nothing about the variant
    (see ``Layout``). kernel: see harness.lockstep.kernels. repeat: the reference's first batch
    run twice, None in a pass that does not measure it.
    """

    notes: tuple[Note, ...]
    variant_notes: tuple[tuple[Note, ...], ...]
    repeat: Repeat | None
    unpaired: tuple[dict[str, str], ...]
    expected: tuple[frozenset[str], ...]
    kernel: Name


def write_report(report: PassReport, documents: Sequence[EncodedDocument], sinks: Sequence[Sink]) -> None:
    """Commit the report to every sink that has none."""
    parts = zip(sinks, report.variant_notes, report.unpaired, report.expected, strict=True)
    for sink, own, unpaired, expected in parts:
        if sink.done(SETUP):
            continue
        notes = [("pass", n.topic, n.text, n.level) for n in (*report.notes, *_repeat_notes(report.repeat))]
        notes += [("variant", n.topic, n.text, n.level) for n in (*own, *_unpaired_notes(unpaired, expected))]
        frames = {
            "documents": document_rows(documents),
            "pass": _pass_rows(report),
            "notes": _strings(notes, ["scope", "topic", "text", "level"]),
            "unpaired": _unpaired_rows(unpaired, expected),
        }
        sink.commit(SETUP, frames)


def read_report(sinks: Sequence[Sink]) -> PassReport:
    """The report that ``write_report`` committed. Raises TableError if there is none."""
    repeat, kernel = _read_pass(_read(sinks[0], "pass"))
    notes = [_read_notes(_read(sink, "notes")) for sink in sinks]
    unpaired = [_read(sink, "unpaired") for sink in sinks]
    return PassReport(
        notes=notes[0][0],
        variant_notes=tuple(own for _, own in notes),
        repeat=repeat,
        unpaired=tuple(dict(zip(frame["module"], frame["reason"], strict=True)) for frame in unpaired),
        expected=tuple(frozenset(frame["module"][frame["expected"]]) for frame in unpaired),
        kernel=kernel,
    )


def document_rows(documents: Sequence[EncodedDocument]) -> pd.DataFrame:
    """The table ``documents``: one row per document, including skipped ones."""
    rows = [
        (d.index, d.id, d.kind, d.tokens, d.total_tokens, d.cut, d.skipped, d.language, d.cluster) for d in documents
    ]
    columns = ["document", "id", "kind", "tokens", "total_tokens", "cut", "skipped", "language", "cluster"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype(
        {"document": "int32", "tokens": "int64", "total_tokens": "int64", "cut": "bool", "cluster": "int32"}
    )


def _repeat_notes(repeat: Repeat | None) -> list[Note]:
    if repeat is None:
        return []
    notes = [Note(topic="repeat", text=str(repeat))]
    if repeat.max_abs_diff != 0:
        text = "the reference is not deterministic; differences below its own are meaningless"
        notes.append(Note(topic="repeat", text=text, level="warn"))
    return notes


def _unpaired_notes(unpaired: dict[str, str], expected: frozenset[str]) -> list[Note]:
    notes = []
    for which in (unpaired.keys() - expected, expected & unpaired.keys()):
        if which:
            module = min(which, key=list(unpaired).index)
            text = f"{len(which)} modules could not be compared, the first being {module}: {unpaired[module]}"
            notes.append(Note(topic="modules", text=text, level="warn"))
    return notes


def _unpaired_rows(unpaired: dict[str, str], expected: frozenset[str]) -> pd.DataFrame:
    frame = _strings(list(unpaired.items()), ["module", "reason"])
    return frame.assign(expected=[module in expected for module in unpaired]).astype({"expected": "bool"})


def _pass_rows(report: PassReport) -> pd.DataFrame:
    repeat = report.repeat or Repeat(0.0, 0.0, 0)
    rows = [(report.kernel, repeat.kl_mean, repeat.max_abs_diff, repeat.tokens)]
    return pd.DataFrame(rows, columns=["kernel", "repeat_kl_mean", "repeat_max_abs_diff", "repeat_tokens"])


def _read_pass(frame: pd.DataFrame) -> tuple[Repeat | None, Name]:
    ((name, kl, largest, tokens),) = frame.itertuples(index=False)
    kernel: Name = name if name in get_args(Name) else "eager"
    return Repeat(float(kl), float(largest), int(tokens)) if tokens else None, kernel


def _read_notes(frame: pd.DataFrame) -> tuple[tuple[Note, ...], tuple[Note, ...]]:
    rows = list(frame.itertuples(index=False))
    made = [(scope, Note(topic=topic, text=text, level=level)) for scope, topic, text, level in rows]
    return tuple(n for scope, n in made if scope == "pass"), tuple(n for scope, n in made if scope == "variant")


def _strings(rows: Sequence[tuple[str, ...]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns, dtype="str")


def _read(sink: Sink, table: str) -> pd.DataFrame:
    frame = sink.read(table)
    if frame is None:
        raise TableError(f"the shared pass has no table {table}; delete the tables of the run and check again")
    return frame
