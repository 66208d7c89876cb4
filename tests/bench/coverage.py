"""How often rules pass what they must not, and how often intervals hold the truth: one page. A script, not a test.

    python tests/bench/coverage.py --out .github/COVERAGE.md                  about two hours on one core
    python tests/bench/coverage.py --out .github/COVERAGE.md --runs 500       a quarter of an hour

In every simulated world (tests/helpers/simulated.py) the
truth lies exactly at the limit of the rule, so every pass is a false
one. Tokens of a document belong together; some worlds have outlying documents, drifting clocks, or so few changed
answers that many draws have none. Seeds are fixed: the same command gives the same page.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.helpers.simulated import Outcome, simulate, worlds

SIZES = (10, 50, 200, 1319)
FALSE_PASS = 0.05
"""How often a rule may pass where the truth lies at its limit. One side of a 95 % interval aims at half of that."""
HEADING = "## Stopping early"
"""Where the part of the page begins that tests/bench/early_stops.py writes, and this script leaves as it is."""
HELD = (0.93, 0.97)
"""Between which the share of 95 % intervals should lie that hold the truth."""


def noise(share: float, runs: int) -> float:
    """Three standard errors of a simulated share."""
    return 3 * math.sqrt(share * (1 - share) / max(runs, 1))


def remark(outcome: Outcome) -> str:
    """What is out of bounds by more than the noise of the simulation; empty if nothing is."""
    if outcome.passed / outcome.runs > FALSE_PASS + noise(FALSE_PASS, outcome.runs):
        return "**passes too often**"
    if not outcome.intervals:
        return "never an interval"
    share = outcome.covered / outcome.intervals
    if share < HELD[0] - noise(HELD[0], outcome.intervals):
        return "too narrow alone" if outcome.world.beside else "**too narrow**"
    return "wide" if share > HELD[1] + noise(HELD[1], outcome.intervals) else ""


def row(outcome: Outcome) -> str:
    passed, held = outcome.passed / outcome.runs, outcome.covered / max(outcome.intervals, 1)
    known = outcome.intervals / outcome.runs
    shown = f"{100 * held:.1f}" if outcome.intervals else "–"
    return (
        f"| {outcome.world.name} | {outcome.n} | {100 * passed:.1f} | {shown} | {100 * known:.0f} | {remark(outcome)} |"
    )


def page(outcomes: Sequence[Outcome], command: str) -> Iterator[str]:
    runs = sorted({outcome.runs for outcome in outcomes})
    yield "# False passes and coverage"
    yield ""
    yield (
        "Simulated worlds whose truth lies exactly at the limit of the rule, so that every pass is false. A rule may "
        f"pass in {100 * FALSE_PASS:g} %, one side of its 95 % interval aims at 2.5 %; intervals should hold the "
        f"truth in {100 * HELD[0]:g} to {100 * HELD[1]:g} %. Remarks allow three standard errors of the simulation "
        f"({' or '.join(map(str, runs))} draws; up to {100 * noise(FALSE_PASS, runs[0]):.1f} points)."
    )
    yield ""
    yield (
        "*Wide* is on the cautious side, and inherent in counts: of paired answers few differ, so that only some "
        "values of the interval can occur (exact and score intervals), and the error of a model that is as well "
        "calibrated as its reference has no spread to learn from. n counts documents (items, timing blocks)."
    )
    yield ""
    yield (
        "*Too narrow alone*: damage that sits in few documents cannot be seen in a sample that has none of them. "
        "There a run passes only if the rule on broken documents passes as well, as in the gate ship: fewer than 72 "
        "documents (83 where several looks are taken) never do."
    )
    yield ""
    yield f"Made by `{command}`."
    yield ""
    yield "| what | n | passes, % | holds the truth, % | has an interval, % | |"
    yield "|---|---|---|---|---|---|"
    yield from map(row, outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--runs", type=int, default=4000, help="draws of each world and size")
    parser.add_argument("--runs-of-largest", type=int, help="draws at the largest size; by default a quarter")
    parser.add_argument("--only", default="", help="worlds whose name contains this")
    options = parser.parse_args()
    largest = options.runs_of_largest or max(options.runs // 4, 1)
    outcomes = []
    for world in worlds():
        for n in SIZES if options.only in world.name else ():
            begun = time.perf_counter()
            outcomes.append(simulate(world, n, largest if n == max(SIZES) else options.runs))
            print(f"{row(outcomes[-1])} {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    given = f" --runs {options.runs} --runs-of-largest {largest}" + (f" --only '{options.only}'" * bool(options.only))
    command = f"python tests/bench/coverage.py --out {options.out}{given}"
    before = options.out.read_text(encoding="utf-8") if options.out.exists() else ""
    kept = "".join(before.partition(HEADING)[1:])
    options.out.write_text("\n".join(page(outcomes, command)) + "\n" + (f"\n{kept}" if kept else ""), encoding="utf-8")


if __name__ == "__main__":
    main()
