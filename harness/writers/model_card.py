"""model_card.md: a section for a model card, and the results as the metadata ``model-index`` of the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from harness.errors import WriteError
from harness.records import Measurement, Run
from harness.report import markdown, words
from harness.report.digest import Digest, digest
from harness.report.display import clean
from harness.report.front_matter import put_entry, read_entry, split_card
from harness.system.files import write_atomic
from harness.tables.access import Tables
from harness.writers import Writer

BEGIN, END = "<!-- lm-shipcheck: begin -->", "<!-- lm-shipcheck: end -->"
_SECTION = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
_DATASET = "lm-shipcheck"
"""The dataset type by which results of this harness are told from those of others."""
MOST_BYTES = 60_000


class ModelCard(Writer):
    """model_card.md: what was compressed, how it was judged and what it lost, as a model card for the hub."""

    file_name: ClassVar[str] = "model_card.md"
    paths: ClassVar[tuple[str, ...]] = ("card",)
    card: str = ""
    """An existing model card (README.md) to merge into; it is read, never changed. Empty: a new card."""

    def write(self, run: Run, tables: Tables, folder: Path) -> Path:
        """Write model_card.md atomically. Raises WriteError."""
        path = folder / self.file_name
        write_atomic(path, merge(_read(self.card), run, folder).encode())
        return path


def merge(card: str, run: Run, folder: Path) -> str:
    """The card with this run: its section replaced or added at the end, its results merged into ``model-index``.

    Results of other tools, of other models and all other bytes stay. Raises WriteError for a card that is no card.
    """
    metadata, body = split_card(card)
    metadata = put_entry(metadata, "model-index", _merge_index(read_entry(metadata, "model-index"), run))
    section = f"{BEGIN}\n{_encode_section(run, folder)}{END}"
    if len(_SECTION.findall(body)) > 1:
        raise WriteError(f"the card has more than one section between {BEGIN} and {END}; leave one")
    if _SECTION.search(body):
        body = _SECTION.sub(lambda _: section, body)
    else:
        body = f"{body}{'' if body.endswith(chr(10)) or not body else chr(10)}\n{section}\n"
    return f"---\n{metadata}---\n{body}"


def _read(card: str) -> str:
    if not card:
        return ""
    try:
        return Path(card).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WriteError(f"{card}: the model card cannot be read: {error}") from error


def _encode_section(run: Run, folder: Path) -> str:
    told = digest(run, folder)
    sections = (
        markdown.Section("title", f"## Compression check: {markdown.code(told.name)}\n"),
        markdown.compressed(told),
        markdown.Section("verdict", f"\n**{told.headline}.** {markdown.escape(told.reason, 2000)}\n"),
        _lost(run, told),
        markdown.stopping(told),
        markdown.warnings(told),
        markdown.passing(told),
    )
    return markdown.fit(sections, MOST_BYTES, markdown.code(told.report))


def _lost(run: Run, told: Digest) -> markdown.Section:
    """The judged metrics and those of quality, on both sides."""
    lines = tuple(
        f"| {markdown.code(m.name)} | {markdown.numbers(m)} | {markdown.escape(m.unit)} |\n" for m in _reported(run)
    )
    columns = "| metric | reference | this model | change | low | high | unit |\n|---|---|---|---|---|---|---|\n"
    head = f"\n**What it lost**\n\n{columns}"
    return markdown.Section("what it lost", head if lines else "", lines)


def _reported(run: Run) -> list[Measurement]:
    judged = {each.metric for each in run.verdicts}
    return [m for m in run.measurements if m.name in judged or run.metric(m.name).summary == "quality"]


def _merge_index(before: Any, run: Run) -> list[dict[str, Any]]:
    """``model-index`` with this run's results in place of earlier ones. Raises WriteError for no list of models."""
    if before is None:
        before = []
    known = isinstance(before, list) and all(isinstance(model, dict) and "name" in model for model in before)
    if not known:
        raise WriteError("model-index of the card is no list of models with names; correct it by hand")
    name = clean(run.name)
    ours = next((model for model in before if model["name"] == name), {"name": name, "results": []})
    kept = [result for result in ours.get("results") or [] if not _is_ours(result)]
    merged = ours | {"results": [*kept, *_results(run)]}
    return [merged if model is ours else model for model in before] + ([] if ours in before else [merged])


def _is_ours(result: Any) -> bool:
    dataset = result.get("dataset") if isinstance(result, dict) else None
    return isinstance(dataset, dict) and str(dataset.get("type", "")).startswith(_DATASET)


def _results(run: Run) -> list[dict[str, Any]]:
    """One result with every reported number: its value on this model's side, else its change."""
    suites = run.asked.get("suites")
    names = (
        [str(each.get("name")) for each in suites if isinstance(each, dict)] if isinstance(suites, list | tuple) else []
    )
    metrics = []
    for m in _reported(run):
        for side in ("variant", "change"):
            value = getattr(m, side)
            if value is not None:
                name = words.add_labels(m.name, {k: v for k, v in m.labels.items() if not k.startswith("worst")})
                metrics.append({"type": clean(f"{m.name}.{side}"), "value": value, "name": clean(f"{name} ({side})")})
    if not metrics:
        return []
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": clean(f"suites {', '.join(names)} of lm-shipcheck"), "type": f"{_DATASET}"},
            "metrics": metrics,
        }
    ]
