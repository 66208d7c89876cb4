"""How many items a paired comparison needs, beside the unpaired z-test, as one page. A script, not a test.

    python tests/bench/documents.py --out .github/DOCUMENTS.md                two minutes on one core

Both plans ask the same: the two-sided 95 % interval of a drop in accuracy lies below the margin four times in five when
there is no drop. The answers are then drawn again and again, and judged by the intervals that the harness uses; with a
drop of exactly the margin, every pass is a false one. Seeds are fixed: the same command gives the same page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.helpers.paired_plan import Drawn, Plan, draw, plan

CASES = [
    (0.01, 0.05, accuracy) for accuracy in (0.3, 0.5, 0.7, 0.8, 0.9)
] + [(0.01, 0.02, 0.7), (0.01, 0.1, 0.7), (0.02, 0.05, 0.7), (0.03, 0.05, 0.7)]  # fmt: skip


def row(found: Plan, paired: Drawn, unpaired: Drawn) -> str:
    return (
        f"| {100 * found.margin:g} | {100 * found.discordance:g} | {found.accuracy:g} | {found.paired} "
        f"| {found.planned} (×{found.planned / found.paired:.1f}) | {found.unpaired} "
        f"(×{found.unpaired / found.paired:.1f}) | {100 * paired.paired:.0f} | {100 * paired.unpaired:.0f} "
        f"| {100 * unpaired.unpaired:.0f} | {100 * paired.paired_at_margin:.1f} |"
    )


def page(rows: Sequence[str], command: str, runs: int) -> Iterator[str]:
    yield "# Items needed, paired and unpaired"
    yield ""
    yield (
        "Two models of one accuracy answer the same items; *discordant* items are right on one side only. The numbers "
        "of items are those on which a drop by the margin is excluded four times in five although there is none. "
        "*Paired*: by Tango's score interval, which the harness uses. *z, planned*: by the z interval of two "
        "independent shares, as one plans it. *z on the same items*: by that interval, where both sides answer the "
        "same items after all, so that their scores differ less than it takes them to. At 5 % discordance and one "
        "point, pairing needs at most a fifth of the planned items for accuracies from 0.16 to 0.84, and of the other "
        "number from 0.27 to 0.73."
    )
    yield ""
    yield (
        f"The right half was drawn {runs} times (a quarter as often for z at its own n): how often each test passes, "
        "and how often the paired one passes falsely when the drop is exactly the margin (2.5 % is aimed at). Three "
        f"standard errors of 80 % are {300 * (0.16 / runs) ** 0.5:.1f} points, of 2.5 % "
        f"{300 * (0.024375 / runs) ** 0.5:.1f}."
    )
    yield ""
    yield f"Made by `{command}`."
    yield ""
    yield (
        "| margin, points | discordant, % | accuracy | n, paired | n, z planned | n, z on the same items "
        "| paired passes, % | z passes at the paired n, % | z passes at its n, % | paired passes falsely, % |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    yield from rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--runs", type=int, default=2000, help="draws of each case")
    options = parser.parse_args()
    rows = []
    for margin, discordance, accuracy in CASES:
        found = plan(margin, discordance, accuracy)
        own = draw(found, found.paired, options.runs)
        rows.append(row(found, own, draw(found, found.unpaired, max(options.runs // 4, 1))))
        print(rows[-1], file=sys.stderr, flush=True)
    command = f"python tests/bench/documents.py --out {options.out} --runs {options.runs}"
    options.out.write_text("\n".join(page(rows, command, options.runs)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
