"""Run: load the reference once, make its variants, run the probes, and compute measurements from their tables.

Every plan of a group names the same reference and the same suites, so each batch goes through the reference once
however many variants there are. A variant that cannot be made or observed is reported and leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.concluding.conclusion import conclude
from harness.concluding.pair import Observed, Pair
from harness.errors import HarnessError
from harness.planning.specs import Plan
from harness.progress import Progress, report_to
from harness.running.session import Session, keep_error, open_session
from harness.system.foreign import LONG, Ticking, guard
from harness.tables.store import TABLES, Store


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
                with keep_error(pair):
                    conclude(pair)
        finally:
            session.close()
    return list_outcomes(session.outcomes)


def _observe(session: Session) -> None:
    session.compare_files(session.pairs)
    # Before anything else: a rule that asks for it is decided, and documents no longer drawn, only with its floor.
    session.observe_floors()
    session.observe(session.pairs)
    with guard("the artifacts", patience=LONG):
        session.observe_artifacts(session.pairs)
    session.verify_unchanged()


def list_outcomes(outcomes: Sequence[Pair | HarnessError]) -> list[Observed | HarnessError]:
    """The record of every pair, or why there is none."""
    return [each if isinstance(each, HarnessError) else each.error or each.observed for each in outcomes]
