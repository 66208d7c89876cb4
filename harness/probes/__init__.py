"""Probes look at a pair of models and leave table rows. They are the only code that touches models while measuring.

Every probe sees one reference and several variants, so that the reference is computed once. Each variant has a
sink of its own that keeps its rows. A pass probe takes part in the one shared teacher-forced pass
(``harness/lockstep/driver.py``); any other probe drives the models itself, unit by unit, so that a killed run resumes
at the unit it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from harness.records import ModelSpec, Plugin, Served

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data.documents import RawDocument
    from harness.data.encoding import EncodedDocument
    from harness.lockstep.recording import PassContext, Recorder
    from harness.models.loaded import LoadedModel
    from harness.progress import Progress
    from harness.records import DocumentsSpec
    from harness.tables.access import Sink


class Probe(Plugin):
    """A look at a pair of models."""

    needs: ClassVar[tuple[Served, ...]] = ()
    """What it asks of models beside logits."""

    @property
    def reads_documents(self) -> bool:
        """Whether it looks at the documents of the suite, which must then have some."""
        return False


class PassProbe(Probe):
    """A probe that takes part in the shared teacher-forced pass."""

    whole_batches: ClassVar[bool] = False
    """Whether it reads calls of modules as whole batches: it then takes no part where these run in another arrangement
    than those of the reference (noise floors)."""

    @property
    def reads_documents(self) -> bool:
        """Always."""
        return True

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


class TextProbe(Probe):
    """A probe that drives the models itself over the texts of the suite, each with its own tokenizer."""

    @property
    def reads_documents(self) -> bool:
        """Where nothing else is said."""
        return True

    def inputs(self) -> str:
        """Hash of what it reads beside the suite's documents: part of the run's data key."""
        return ""

    def observe(
        self,
        reference: LoadedModel,
        variants: Sequence[LoadedModel],
        documents: Sequence[RawDocument],
        spec: DocumentsSpec | None,
        sinks: Sequence[Sink],
        progress: Progress,
    ) -> None:
        """Commit the rows of every unit that is not done yet into the sink of each variant.

        documents: the texts of the suite, by its ``spec``; none where the suite has none.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Shipment:
    """What would be shipped of one variant.

    kind: ``save`` it is to be written into ``folder``; ``checkpoint`` it is the files that the variant was loaded from;
    ``none`` nobody wants it. write: puts the variant into ``folder``, whole or not at all; raises WriteError where the
    disk refuses and BackendError where the library does. spec: how a fresh process loads it from there. adapter: the
    folder of the adapter that is put beside its weights then, if there is one.
    """

    kind: Literal["save", "checkpoint", "none"]
    folder: Path
    write: Callable[[], None]
    spec: ModelSpec
    adapter: Path | None = None


class ShippedProbe(Probe):
    """A probe of what would be shipped.

    Writing a model may change it in memory, so such a probe looks at a variant when all others of all suites are done,
    and once, however many suites name it.
    """

    @property
    def reads_documents(self) -> bool:
        """Always."""
        return True

    def observe(
        self,
        variant: LoadedModel,
        shipment: Shipment,
        documents: Sequence[EncodedDocument],
        sinks: Sequence[Sink],
        progress: Progress,
    ) -> None:
        """Commit the same rows into the sink of every suite that asks. documents: those of the first of them."""
        raise NotImplementedError


BASE = Probe
