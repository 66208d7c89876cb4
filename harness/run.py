"""Run: load the reference once, make its variants, run the probes, and compute measurements from their tables.

Every plan of a group names the same reference and the same suites, so each batch goes through the reference once
however many variants there are. A variant that cannot be made or observed is reported and leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError
from harness.planning.specs import Plan
from harness.progress import Progress, report_to
from harness.running.concluding import conclude
from harness.running.pair import Observed, Pair
from harness.running.session import Session, open_session
from harness.running.shards import TABLES, Share, observe_share, write_shard
from harness.system.foreign import LONG, Ticking, guard
from harness.tables.store import Store


def open_store(folder: Path, data_key: str) -> Store:
    """The tables in the folder of a run. Raises TableError."""
    return Store(folder / TABLES, data_key)


def run_group(plans: Sequence[Plan], folders: Sequence[Path], progress: Progress) -> list[Observed | HarnessError]:
    """Observe and measure every variant of one group of plans (see forecast.passes); ``folders`` in the same order.

    A variant that fails has its HarnessError as outcome; a failure of the reference is raised.
    """
    ticking = Ticking(progress)
    with report_to(ticking):
        session = open_session(plans, folders, ticking, open_store)
        try:
            _observe(session)
            for pair in session.pairs:
                conclude(pair)
        finally:
            session.close()
    return list_outcomes(session.outcomes)


def _observe(session: Session) -> None:
    session.compare_files()
    # Before anything else: a rule that asks for it is decided, and documents no longer drawn, only with its floor.
    session.observe_floors()
    session.observe(session.pairs)
    with guard("the artifacts", patience=LONG):
        session.observe_artifacts()
    session.verify_unchanged()


def list_outcomes(outcomes: Sequence[Pair | HarnessError]) -> list[Observed | HarnessError]:
    """The record of every pair, or why there is none."""
    return [each if isinstance(each, HarnessError) else each.error or each.observed for each in outcomes]


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
