"""Shard: compute a share of the work on some variants, to be put together with the others by ``harness merge``.

plan ─▶ every n-th unit of every variant ─▶ tables and shard.json in <out>/shard-3-of-8/<name>
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.check import begin_anew, hold_run_folder, list_passes, read_plans, run_or_record
from harness.errors import HarnessError
from harness.forecast.cost import check_fits
from harness.planning.specs import Plan
from harness.records import FAILURE_FILE
from harness.running.failures import record_end, record_error
from harness.running.publishing import EXIT_ERROR
from harness.system.environment import prepare_threads
from harness.system.library_log import keep_library_noise
from harness.terminal import Terminal

if TYPE_CHECKING:
    from harness.concluding.pair import Pair
    from harness.sharing.shards import Share

_SHARE = re.compile(r"(\d{1,6})/(\d{1,6})")
_AUTO = re.compile(r"auto(?:/(\d{1,6}))?")
_EXPECTED = (
    "3/8 (the third of eight), auto in a Slurm array (SLURM_ARRAY_TASK_ID), or auto/8 in a Kubernetes job of 8 indexes "
    "(JOB_COMPLETION_INDEX)"
)


def read_share(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """The number of a shard, from 1, and how many there are, as a user or a scheduler says it. Raises ValueError."""
    if found := _SHARE.fullmatch(text):
        number, of = map(int, found.groups())
    elif found := _AUTO.fullmatch(text):
        number, of = _read_scheduler(found[1], environment)
    else:
        raise ValueError(f"found {text!r}, expected {_EXPECTED}")
    if not 1 <= number <= of:
        raise ValueError(f"found part {number} of {of}, expected a part from 1 to {of}")
    return number, of


def _read_scheduler(given: str | None, environment: Mapping[str, str]) -> tuple[int, int]:
    if (index := environment.get("SLURM_ARRAY_TASK_ID")) is not None:
        place = _number("SLURM_ARRAY_TASK_ID", index)
        first = _number("SLURM_ARRAY_TASK_MIN", environment.get("SLURM_ARRAY_TASK_MIN", "1"))
        step = _number("SLURM_ARRAY_TASK_STEP", environment.get("SLURM_ARRAY_TASK_STEP", "1"))
        count = given or environment.get("SLURM_ARRAY_TASK_COUNT", "")
        return (place - first) // step + 1, _number("SLURM_ARRAY_TASK_COUNT", count)
    if (index := environment.get("JOB_COMPLETION_INDEX")) is not None:
        if given is None:
            raise ValueError(
                "found auto in a Kubernetes job, which does not say how many parts there are: write auto/8"
            )
        return _number("JOB_COMPLETION_INDEX", index) + 1, int(given)
    raise ValueError(
        f"found auto, and neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set; expected {_EXPECTED}"
    )


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"found {name}={text!r} in the environment, expected a number")
    return int(text)


def compute_shard(files: Sequence[Path], out: Path, number: int, of: int, terminal: Terminal) -> int:
    """Compute part ``number`` of ``of``; returns 0 once it is stored, 2 if some variant could not be run.

    There is no verdict yet, whatever is stored. Raises PlanError before any model is loaded.
    """
    from harness.sharing.shards import Share

    share, out = Share(number, of), out / f"shard-{number}-of-{of}"
    plans = read_plans(files, out, terminal)
    if stopping := [plan.source for plan in plans if plan.stop_at_failure]:
        raise HarnessError(
            f"{stopping[0]}: stop_at_failure: found true, expected false for a shard: a shard does not know what the "
            "documents of the others say, and computes everything; leave it out, or use one process or Ray"
        )
    folders = {plan.name: out / plan.name for plan in plans}
    with ExitStack() as held:
        for plan in plans:
            held.enter_context(hold_run_folder(folders[plan.name]))
        begin_anew(plans, folders, terminal)
        prepare_threads()
        ended: list[str] = []
        try:
            with keep_library_noise(list(folders.values())):
                codes = [
                    code
                    for group in list_passes(plans, terminal)
                    for code in _compute(group, folders, share, terminal, ended)
                ]
        except BaseException as error:
            left = [plan for plan in plans if plan.name not in ended]
            record_end(left, [folders[plan.name] for plan in left], error, terminal)
            raise
    terminal.note(f"shard {share} is stored in {out}; harness merge judges once all {of} are there")
    return max(codes)


def _compute(
    group: Sequence[Plan], folders: Mapping[str, Path], share: Share, terminal: Terminal, ended: list[str]
) -> list[int]:
    """The exit code of every variant of a group."""
    results = run_or_record(group, folders, terminal, partial(_run, share))
    ended += [plan.name for plan in group]
    if isinstance(results, HarnessError):
        return [EXIT_ERROR] * len(group)
    return [_finish(plan, result, folders, terminal) for plan, result in zip(group, results, strict=True)]


def _run(share: Share, plans: Sequence[Plan], folders: Sequence[Path], terminal: Terminal) -> list[Pair | HarnessError]:
    from harness.sharing.observe import run_share

    check_fits(plans)
    return run_share(plans, folders, share, terminal)


def _finish(plan: Plan, result: Pair | HarnessError, folders: Mapping[str, Path], terminal: Terminal) -> int:
    folder = folders[plan.name]
    if isinstance(result, HarnessError):
        terminal.error(f"{plan.name}: {result}", result.failure)
        record_error(plan, result, folder, terminal, shared=False)
        return EXIT_ERROR
    for message in result.observed.messages:
        terminal.note(message)
    if os.path.lexists(folder / FAILURE_FILE):
        (folder / FAILURE_FILE).unlink()
    return 0
