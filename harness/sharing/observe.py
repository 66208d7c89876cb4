"""Computes a share of the work on one group of variants in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.concluding.pair import Pair
from harness.errors import HarnessError
from harness.planning.specs import Plan
from harness.progress import Progress, report_to
from harness.run import open_store
from harness.running.session import open_session
from harness.sharing.shards import Share, observe_share, write_shard
from harness.system.foreign import Ticking


def run_share(
    plans: Sequence[Plan], folders: Sequence[Path], share: Share, progress: Progress
) -> list[Pair | HarnessError]:
    """Compute a share of the work on one group of plans, and leave its record beside the tables of each variant."""
    ticking = Ticking(progress)
    with report_to(ticking):
        session = open_session(plans, folders, ticking, open_store)
        try:
            observe_share(session, share)
            for plan, folder, pair in zip(plans, folders, session.outcomes, strict=True):
                if not isinstance(pair, HarnessError) and pair.error is None:
                    write_shard(pair, list(session.list_units(pair)), plan, share, folder)
        finally:
            session.close()
    return [each if isinstance(each, HarnessError) else each.error or each for each in session.outcomes]
