"""A group of plans on the workers of a Ray cluster: what ``harness.run.run_group`` does in one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from harness.cluster.board import Board
from harness.cluster.concluding import Occasion
from harness.cluster.dispatch import Dispatcher
from harness.cluster.job import CheckJob
from harness.cluster.opener import CheckOpener
from harness.cluster.ray_workers import RayWorkers
from harness.concluding.pair import Observed
from harness.errors import HarnessError
from harness.forecast.passes import need_together, split_to_fit
from harness.planning.specs import Plan
from harness.progress import Progress
from harness.records import RunSpec
from harness.running.publishing import Judged
from harness.system.stopwatch import read_shared


def run_group_on_cluster(
    plans: Sequence[Plan],
    folders: Sequence[Path],
    checks: Sequence[int],
    spec: RunSpec,
    progress: Progress,
    note: Callable[[str], None],
) -> list[Observed | Judged | HarnessError]:
    """Observe, measure and judge every variant of a group, whose outcomes come in the order of the plans.

    checks: how often each folder was held. A variant that fails has its HarnessError as outcome; a failure of the
    reference, and ClusterError, are raised.
    """
    limit = None if spec.memory_per_worker is None else spec.memory_per_worker * 1e9
    parts = split_to_fit(plans, limit)
    sets = {str(number): part for number, part in enumerate(parts, start=1)}
    by_name = {plan.name: folder for plan, folder in zip(plans, folders, strict=True)}
    opener = CheckOpener(Path.cwd(), {key: (part, [by_name[p.name] for p in part]) for key, part in sets.items()})
    workers = RayWorkers(spec, opener, max(map(need_together, parts)))
    held = {plan.name: count for plan, count in zip(plans, checks, strict=True)}
    occasion = Occasion(datetime.now(UTC), held, read_shared(), os.environ.get("HOME", ""))
    job = CheckJob(sets, by_name, workers.quiet_label, occasion)
    try:
        Dispatcher(job, workers, Board(progress, note), patience=spec.wait).go()
        return job.conclude()
    finally:
        job.close()
