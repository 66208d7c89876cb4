"""Markdown of a run as GitHub and GitLab show it, within a size: whatever names say, it stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.records import Measurement
from harness.report import display, words
from harness.report.digest import Digest, Finding

# What Markdown, GitHub's tables, math and autolinks take for markup. Entities are read as the characters alone.
_MARKUP = re.compile(r"[&<>`*_\[\]()#|~$!\\{}\"']|:(?=//)|(?<=www)\.|@|\u200b")
# GitHub links names and issues and draws emoji even where they came from entities, but not across an empty space.
_LINKED = re.compile(r"(?<=[@#:])(?=[\w/])")
_EMPTY = "\u200b"


@dataclass(frozen=True)
class Section:
    """A part of a page that may be cut: its head always stands, its lines as far as there is room, then its tail."""

    title: str
    head: str
    lines: tuple[str, ...] = ()
    tail: str = ""


def escape(text: str, most: int = 300) -> str:
    """``text`` for running Markdown, on one line, harmless."""
    return _entities(_LINKED.sub(_EMPTY, display.clean(text, most)))


def code(text: str, most: int = 300) -> str:
    """``text`` as code: a name, a number, a path, in which nothing is linked."""
    return f"<code>{_entities(display.clean(text, most))}</code>"


def mark_safely(name: str) -> str:
    """A name inside an HTML comment, which it cannot end."""
    return re.sub(r"[^A-Za-z0-9._-]|--+", "-", display.clean(name, 100))


def fit(sections: Iterable[Section], most: int, elsewhere: str) -> str:
    """The sections as one page of at most ``most`` bytes in UTF-8.

    A section that is too long keeps its first lines and says how many are left out; one whose head has no room is
    dropped and named at the end. elsewhere: where all of it is.
    """
    note = "\nLeft out for length: {}. All of it: {}\n"
    sections = [section for section in sections if section.head]
    titles = [section.title for section in sections]
    room = most - len(note.format(", ".join(titles), elsewhere).encode())
    page, dropped = "", []
    for section in sections:
        text, room_left = _cut(section, room)
        if text:
            page, room = page + text, room_left
        else:
            dropped.append(section.title)
    return page + note.format(", ".join(dropped), elsewhere) if dropped else page


def head(told: Digest) -> Section:
    """The verdict with its reason, in a few lines."""
    mark = words.STATUSES[told.verdict].mark
    lines = [f"### {mark} {told.headline}: {code(told.name)}", "", escape(told.reason, 2000), ""]
    lines += [f"- {escape(told.count_line)}"]
    lines += [f"- {escape(told.selected, 1000)}"] if told.selected else []
    lines += [f"- class of failure: {code(told.failure)}"] if told.failure else []
    lines += [f"- {escape(told.comparable, 1000)}"] if told.comparable else []
    lines += [f"- {escape(sentence, 1000)}" for sentence in told.stops]
    lines += [f"- report: {code(told.report, 1000)}"]
    return Section("verdict", "\n".join(lines) + "\n")


def stopping(told: Digest) -> Section:
    """The rules that do not pass, each with limit, number, reason, what to do, and its place."""
    lines = [_row(each) for each in told.worst_first if each.status != "pass"]
    columns = "| | rule | found | expected | reason | what to do | where |\n|---|---|---|---|---|---|---|\n"
    return Section("rules that do not pass", f"\n{columns}" if lines else "", tuple(lines))


def passing(told: Digest) -> Section:
    """The rules that pass, folded."""
    passed = [each for each in told.findings if each.status == "pass"]
    lines = [f"| {code(each.name)} | {escape(each.numbers)} | {escape(each.expected)} |\n" for each in passed]
    count = "1 rule passes" if len(passed) == 1 else f"{len(passed)} rules pass"
    opening = f"\n<details><summary>{count}</summary>\n\n| rule | found | expected |\n|---|---|---|\n"
    return Section("rules that pass", opening if passed else "", tuple(lines), "\n</details>\n" if passed else "")


def warnings(told: Digest) -> Section:
    """The warnings that a verdict must not be read without."""
    lines = tuple(f"- {escape(text, 1000)}\n" for text in told.warnings)
    return Section("warnings", "\n**Warnings**\n\n" if lines else "", lines)


def compressed(told: Digest) -> Section:
    """What was compressed, and how."""
    lines = tuple(f"- {escape(line, 1000)}\n" for line in told.compressed)
    return Section("what was compressed", "\n**Compressed**\n\n" if lines else "", lines)


def measured(told: Digest) -> Section:
    """Every measurement, folded."""
    lines = [
        f"| {code(words.add_labels(m.name, m.labels))} | {numbers(m)} | {escape(m.unit)} | {m.n} |\n"
        for m in told.measurements
    ]
    columns = "| metric | reference | variant | change | low | high | unit | n |\n|---|---|---|---|---|---|---|---|\n"
    opening = f"\n<details><summary>{len(lines)} measurements</summary>\n\n{columns}"
    return Section("measurements", opening if lines else "", tuple(lines), "\n</details>\n" if lines else "")


def _row(each: Finding) -> str:
    level = " (advisory)" if each.level == "warn" else ""
    status = f"{words.STATUSES[each.status].mark} {words.STATUSES[each.status].word}{level}"
    reason = f"{each.reason} (limit because: {each.why})" if each.why else each.reason
    texts = (each.numbers, each.expected, reason, each.remedy)
    return (
        f"| {status} | {code(each.name)} | {' | '.join(escape(text, 600) for text in texts)} | {code(each.where)} |\n"
    )


def numbers(m: Measurement) -> str:
    """Reference, variant, change, low and high for five cells, rounded for reading."""
    return " | ".join(display.number(value, 4) for value in (m.reference, m.variant, m.change, m.low, m.high))


def _entities(text: str) -> str:
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)


def _cut(section: Section, room: int) -> tuple[str, int]:
    """The section within ``room`` bytes and the room that is left; empty if its head does not fit."""
    note = "\n… and {} more\n"
    room -= len((section.head + section.tail + note.format(len(section.lines))).encode())
    if room < 0:
        return "", room
    taken = _take(section.lines, room)
    cut = note.format(len(section.lines) - len(taken)) if len(taken) < len(section.lines) else ""
    return section.head + "".join(taken) + cut + section.tail, room - sum(len(line.encode()) for line in taken)


def _take(lines: Sequence[str], room: int) -> list[str]:
    taken = []
    for line in lines:
        room -= len(line.encode())
        if room < 0:
            break
        taken.append(line)
    return taken
