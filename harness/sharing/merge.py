"""Merge: put the shards of some variants together, judge them, and write what a check writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.check import check
from harness.errors import HarnessError, MergeError
from harness.planning.specs import Plan
from harness.system.foreign import guard
from harness.terminal import Terminal

if TYPE_CHECKING:
    from harness.concluding.pair import Observed


def merge(folders: Sequence[Path], files: Sequence[Path], out: Path, terminal: Terminal) -> int:
    """Judge what the shards in ``folders`` measured; returns the exit code, as a check in one process does.

    files: the variant files, where they are not at the place of which the shards read them. Raises MergeError for
    shards that are missing, doubled, or not of one whole, and PlanError for variant files with mistakes.
    """
    from harness.sharing.merging import check_parts, merge_parts
    from harness.sharing.shards import find_parts

    found = find_parts(folders)
    for name, parts in found.items():
        check_parts(name, parts)
    read = files or [Path(each) for each in dict.fromkeys(parts[0].shard.source for parts in found.values())]
    if missing := [str(path) for path in read if not path.is_file()]:
        raise MergeError(
            f"{', '.join(missing)}: found no variant file there; run this in the folder in which the shards ran, or "
            "give it with --file"
        )

    def run(plans: Sequence[Plan], folders: Sequence[Path], _: Terminal, /) -> list[Observed | HarnessError]:
        outcomes: list[Observed | HarnessError] = []
        for plan, folder in zip(plans, folders, strict=True):
            if plan.name not in found:
                raise MergeError(f"{plan.name}: no shard has this variant of {plan.source}, expected all of them")
            with guard(f"the shards of {plan.name}"):
                outcomes.append(merge_parts(plan, found[plan.name], folder).observed)
        return outcomes

    return check(read, out, terminal, run=run)
