"""How often peeking passes what it must not, and what stopping early saves: the second part of a page. A script.

    python tests/bench/early_stops.py --page .github/COVERAGE.md                 a quarter of an hour on two cores
    python tests/bench/early_stops.py --page .github/COVERAGE.md --runs 200      a quarter of that

The worlds are those of tests/helpers/simulated_looks.py. Seeds are fixed: the same command gives the same text.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from harness.records import Sequential
from harness.statistics import planned_looks
from tests.bench.coverage import FALSE_PASS, HEADING, noise
from tests.helpers.simulated_looks import LEAST, Stopped, Stream, every, fixed_size, looks_for, stop_early, streams

MOST = (50, 200, 1319)
BATCHED, BATCH = 200, 8
"""The size at which every batch is looked at, and how many documents a batch has."""
METHODS: tuple[Sequential, ...] = ("group_sequential", "betting")
PLANNED = 0.5
"""Share of the allowed damage that the fixed size is made for: to decide 80 % of the runs that have it."""
MORE = 1.25
SHARES = {"hardly any damage": 0.1, "as planned": PLANNED, "borderline": 0.75, "at the limit": 1.0, "3 times it": 3.0}


REACHED = (
    "With the bounds of planned looks nothing takes more than 1.25 times the fixed size, and as planned more runs "
    "are decided than by the fixed size, but where 5 % of documents carry all damage: with half of what is allowed "
    "they lose 0.2 nats, and 3 times it breaks one document in twenty, which no number of documents tells from the "
    "limit on broken documents. Clear passes and clear fails take half of it or less, but for these: agreement "
    "passes at 0.51, a KL that fails needs little more than the 20 documents of the first look, a few documents "
    "that disagree by far are hard to tell from none at all, and log-normal damage, for which few documents are "
    "enough, waits for those that show that fewer than 5 % are broken: 83, of which no rule can save any. Betting "
    "assumes nothing but the range and never passed falsely here; it pays with documents, most of all where the "
    "limit is close to the end of the range, so planned looks are the default."
)


def peeking(stream: Stream, most: int, runs: int) -> Iterator[str]:
    """False passes, in percent, of every way to look; and how often the interval at the stop holds the truth."""
    batches, planned = every(BATCH, 20, most), planned_looks(20, most)
    for method, sizes in ((METHODS[0], planned), (METHODS[0], batches), (METHODS[1], planned), (METHODS[1], batches)):
        if (sizes is batches and most != BATCHED) or (method == "betting" and not stream.bounded):
            yield "–"
            continue
        count = runs if method == METHODS[0] else max(runs // 4, 1)
        share = stop_early(stream, stream.limit, sizes, method, count).passed / count
        shown = f"{100 * share:.1f}"
        yield f"**{shown}**" if share > FALSE_PASS + noise(FALSE_PASS, count) else shown
    ordinary = (most,), (batches if most == BATCHED else None)
    for fixed in ordinary:
        yield f"{100 * stop_early(stream, stream.limit, fixed, None, runs).passed / runs:.1f}" if fixed else "–"


def savings(stream: Stream, method: Sequential, runs: int) -> Iterator[str]:
    """Documents on average, and how often the rule was decided, for more and less damage than was planned for."""
    fixed = fixed_size(stream.name, PLANNED)
    sizes = looks_for(fixed, MORE)
    alone = stop_early(stream, _truth(stream, PLANNED), (fixed,), None, runs)
    yield f"{100 * (alone.passed + alone.failed) / alone.runs:.0f} %"
    for share in SHARES.values():
        yield _decided(stop_early(stream, _truth(stream, share), sizes, method, runs), fixed)


def peeking_rows(runs: int, name: str) -> list[str]:
    """The lines of a world in the first table."""
    stream, found = _named(name), []
    for most in MOST:
        count = runs if most < max(MOST) else max(runs // 2, 1)
        found.append(f"| {stream.name} | {most} | {' | '.join(peeking(stream, most, count))} |")
    return found


def saved_rows(runs: int, name: str) -> list[str]:
    """The lines of a world in the second table."""
    stream, found = _named(name), []
    for method in METHODS if stream.bounded else METHODS[:1]:
        shown = " | ".join(savings(stream, method, max(runs // 4, 1)))
        found.append(f"| {stream.name} | {method.replace('_', '-')} | {fixed_size(name, PLANNED)} | {shown} |")
    return found


def _named(name: str) -> Stream:
    return next(stream for stream in streams() if stream.name == name)


def _truth(stream: Stream, share: float) -> float:
    return stream.neutral + share * (stream.limit - stream.neutral)


def _decided(found: Stopped, fixed: int) -> str:
    decided = 100 * (found.passed + found.failed) / found.runs
    return f"{found.documents:.0f} ({decided:.0f} %, ×{found.documents / fixed:.2f})"


def part(rows: Sequence[str], saved: Sequence[str], runs: int, command: str) -> Iterator[str]:
    yield HEADING
    yield ""
    yield (
        "Suites with `min` draw documents until their rules are decided, so a truth at the limit has as many chances "
        f"of a false pass as there are looks. {runs} runs of each world (half as many of {max(MOST)} documents, a "
        f"quarter as many of betting), from 20 documents on; more than {100 * FALSE_PASS:g} % and three standard "
        f"errors ({100 * noise(FALSE_PASS, runs):.1f} points) is bold. *Planned* are the looks of a run, as "
        f"`harness plan` shows them; *batches* is a look after every {BATCH} documents. For comparison the ordinary "
        "95 % interval, looked at once, after the last document, and after every batch. Betting is for what is "
        "bounded; the rest keeps the bounds of planned looks."
    )
    yield ""
    yield "| | n | group-sequential, planned | batches | betting, planned | batches | ordinary, once | batches |"
    yield "|---|---|---|---|---|---|---|---|"
    yield from rows
    yield ""
    yield (
        f"What it saves. The fixed size is about the fewest documents, and at least {LEAST}, at which the rule on the "
        f"ordinary interval decides 80 % of runs with {100 * PLANNED:g} % of the allowed damage, found by drawing "
        f"(beside it what it decides of other runs); a run that looks may draw {MORE:g} times as many. "
        f"Documents on average of {max(runs // 4, 1)} runs; in parentheses how many runs were decided, and documents "
        "as a multiple of the fixed size."
    )
    yield ""
    yield f"| world | method | fixed | it decides | {' | '.join(SHARES)} |"
    yield f"|---|---|---|---|{'---|' * len(SHARES)}"
    yield from saved
    yield ""
    yield REACHED
    yield ""
    yield f"Made by `{command}`."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, required=True, help="the page whose second part is written")
    parser.add_argument("--runs", type=int, default=1000, help="runs of each world")
    parser.add_argument("--processes", type=int, default=2, help="processes at a time")
    parser.add_argument("--only", default="", help="worlds whose name contains this")
    options = parser.parse_args()
    rows, saved, begun = list[str](), list[str](), time.perf_counter()
    names = [stream.name for stream in streams() if options.only in stream.name]
    with ProcessPoolExecutor(options.processes) as pool:
        peeked = pool.map(partial(peeking_rows, options.runs), names)
        stopped = pool.map(partial(saved_rows, options.runs), names)
        for name, of_peeking, of_stopping in zip(names, peeked, stopped, strict=True):
            rows += of_peeking
            saved += of_stopping
            print(f"{name} {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    command = f"python tests/bench/early_stops.py --page {options.page} --runs {options.runs}"
    text = options.page.read_text(encoding="utf-8") if options.page.exists() else ""
    first = text.partition(HEADING)[0].rstrip()
    lines = "\n".join(part(rows, saved, options.runs, command))
    options.page.write_text(f"{first}\n\n{lines}\n".lstrip(), encoding="utf-8")


if __name__ == "__main__":
    main()
