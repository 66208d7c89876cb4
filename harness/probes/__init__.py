"""Probes look at a pair of models and leave table rows. They are the only code that touches models while measuring.

Every probe sees one reference and several variants, so that the reference is computed once. Each variant has a
sink of its own that keeps its rows. A pass probe takes part in the one shared teacher-forced pass
(``harness/lockstep/driver.py``); any other probe drives the models itself, unit by unit, so that a killed run resumes
at the unit it was in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from harness.records import Plugin

if TYPE_CHECKING:
    import pandas as pd

    from harness.lockstep.recording import PassContext, Recorder
    from harness.models.loading import LoadedModel


class Sink(Protocol):
    """Where the rows about one variant go."""

    def done(self, unit: str) -> bool:
        """Whether the unit was committed, in this process or in one that was killed."""
        ...

    def commit(
        self, unit: str, frames: Mapping[str, pd.DataFrame], snapshots: Mapping[str, pd.DataFrame] | None = None
    ) -> None:
        """Keep the rows of one unit, by table name: all of them or, if the process dies, none.

        A snapshot is the whole table so far; it replaces what earlier units committed under that name.
        """
        ...

    def read(self, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        """What has been committed to a table so far."""
        ...


class Progress(Protocol):
    """Tells the user how far the work is."""

    def step(self, what: str, done: int, of: int) -> None:
        """``done`` units of ``of`` are ready."""
        ...


class Probe(Plugin):
    """A look at a pair of models."""


class PassProbe(Probe):
    """A probe that takes part in the shared teacher-forced pass."""

    def begin(self, context: PassContext) -> Recorder:
        """A recorder for one pass over all variants: what it watches, and the rows it leaves of every batch."""
        raise NotImplementedError


class OwnProbe(Probe):
    """A probe that drives the models itself."""

    def inputs(self) -> str:
        """Hash of what it reads beside the suite's documents (task files, say): part of the run's data key."""
        return ""

    def observe(
        self,
        reference: LoadedModel,
        variants: Sequence[LoadedModel],
        sinks: Sequence[Sink],
        progress: Progress,
    ) -> None:
        """Commit the rows of every unit that is not done yet into the sink of each variant."""
        raise NotImplementedError


BASE = Probe
