"""The page of the matrix: its rows as tables, and libraries beside simulations of the same recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from harness.statistics import mean, mean_interval
from tests.bench.matrix_cases import LIBRARIES, Case

HEAD = """
KL is KL(reference ‖ variant) with its 95 % interval, clustered by document. *modules*: how many were compressed; real:
what is kept is what the product reads, simulated: values of the format are held in more bits. *bits*: stored for each
compressed weight, scales included; of simulations by this project those that would be stored. *MB*: all weights of the
model. *prefill*, *decode*: time of the variant / time of the reference, taken on a machine that was not idle; of
simulations they say nothing. *seconds*: making the variant. Rows with groups leave out layers whose inputs the groups
do not divide.
"""


@dataclass(frozen=True)
class Row:
    """One variant: its numbers, or why there are none."""

    key: str
    failed: str = ""
    kernel: str = ""
    kl: float = 0.0
    low: float | None = None
    high: float | None = None
    bits: float = 0.0
    stored: int = 0
    prefill: float | None = None
    decode: float | None = None
    seconds: float = 0.0
    took: float = 0.0
    """Seconds of the row with all its measurements; rows that went together share theirs."""
    tokens: list[float] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)


def page(
    cases: Sequence[Case],
    trained: Mapping[str, Mapping[str, Row]],
    families: Mapping[str, Mapping[str, Row]],
    missing: Sequence[str],
) -> str:
    """The whole page. Rows by model, then by name of the case."""
    listed = ", ".join(f"{name} {found}" for name, found in versions().items())
    lines = ["# Backends × methods × models", ""]
    lines += [
        f"Made by `make matrix` on {datetime.now(UTC).date()} on one thread of a processor, in float32: {listed}."
    ]
    took = sum(row.took for rows in (*trained.values(), *families.values()) for row in rows.values())
    lines += [f"All rows together took {took / 60:.0f} minutes.", HEAD.rstrip()]
    for name, rows in trained.items():
        lines += ["", f"## {name}", "", *table(rows, cases)]
        lines += ["", "Recipes that a library and this project both have:", "", *beside(rows, cases)]
    if families:
        lines += ["", "## Small untrained models of each family", "", "KL, nats/token; – where it does not run."]
        lines += ["", *overview(families, cases)]
        for name, rows in families.items():
            lines += ["", f"<details><summary>{name}</summary>", "", *table(rows, cases), "", "</details>"]
    if missing:
        lines += ["", f"Not there: {'; '.join(missing)}."]
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """Those that are installed, by the name that pip knows."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def table(rows: Mapping[str, Row], cases: Sequence[Case]) -> Iterator[str]:
    """One line for every case that runs or fails on a model."""
    yield "| backend | method | modules | KL, nats/token | 95 % interval | bits | MB | prefill | decode | seconds |"
    yield "| --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    for case in cases:
        row = rows[case.name]
        if row.failed:
            yield f"| {case.backend} | {case.method} | not run: {row.failed} | | | | | | | |"
            continue
        between = f"{row.low:.5f} – {row.high:.5f}" if row.low is not None else ""
        times = [f"{each:.2f}" if each is not None else "" for each in (row.prefill, row.decode)]
        yield (
            f"| {case.backend} | {case.method} | {row.kernel} | {row.kl:.5f} | {between} | {row.bits:.2f} | "
            f"{row.stored / 1e6:.3f} | {times[0]} | {times[1]} | {row.seconds:.1f} |"
        )


def beside(rows: Mapping[str, Row], cases: Sequence[Case]) -> Iterator[str]:
    """Library and simulation of one recipe, with the paired difference of their KL on the same tokens."""
    yield "| library | simulation | KL library | KL simulation | difference | 95 % interval | |"
    yield "| --- | --- | ---: | ---: | ---: | --- | --- |"
    for case in cases:
        if not case.beside or rows[case.name].failed or rows[case.beside].failed:
            continue
        theirs, ours = rows[case.name], rows[case.beside]
        differences = [a - b for a, b in zip(theirs.tokens, ours.tokens, strict=True)]
        value, found = mean(differences), mean_interval(differences, theirs.documents)
        if not any(differences):
            said, between = "the same numbers", ""
        elif found is None:
            said, between = "too few documents", ""
        else:
            between = f"{found.low:+.6f} – {found.high:+.6f}"
            agree = found.low <= 0 <= found.high
            said = "agree" if agree and not case.always else case.differs or "**differ, and it is not known why**"
        yield (f"| {case.name} | {case.beside} | {theirs.kl:.5f} | {ours.kl:.5f} | {value:+.6f} | {between} | {said} |")


def overview(found: Mapping[str, Mapping[str, Row]], cases: Sequence[Case]) -> Iterator[str]:
    """KL of every case on every small model; a dash where it does not run."""
    yield "| | " + " | ".join(found) + " |"
    yield "| --- |" + " ---: |" * len(found)
    for case in cases:
        cells = [f"{rows[case.name].kl:.4f}" if not rows[case.name].failed else "–" for rows in found.values()]
        yield f"| {case.name} | " + " | ".join(cells) + " |"
