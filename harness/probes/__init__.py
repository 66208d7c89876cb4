"""Probes observe models and leave table rows. They are the only code that touches models while measuring.

Every probe sees one reference and several variants, so that the reference is computed once; the rows about each
variant go into a sink of its own. What is known of a probe is declared on its class: when it runs (``runs``), what it
reads (``reads``), and what it needs of a model beyond logits (``needs``).

    runs          hook                  when
    files         observe               before any model is called; again on an artifact that the run saved
    shared_pass   begin → Recorder      in the one teacher-forced pass of a suite (``harness/lockstep/driver.py``)
    alone         observe               after the shared pass; it drives the models itself, unit by unit
    artifact      observe               after all other probes of all suites, once for each variant

The pass has a hook of its own because it, and not the probe, decides when which model runs. A killed run resumes at the
batch or the unit it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from harness.records import ModelSpec, Note, Plugin, Served

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from harness.data.documents import RawDocument
    from harness.data.encoding import EncodedDocument
    from harness.lockstep.recording import PassContext, Recorder
    from harness.models.loaded import LoadedModel
    from harness.progress import Progress
    from harness.records import DocumentsSpec
    from harness.tables.access import Sink

Runs = Literal["files", "shared_pass", "alone", "artifact"]
Reads = Literal["tokens", "texts", "nothing"]
HOOKS: dict[str, str] = {"files": "observe", "shared_pass": "begin", "alone": "observe", "artifact": "observe"}
"""The method that a probe must implement, by when it runs."""


@dataclass(frozen=True)
class ArtifactSource:
    """Where the artifact of one variant comes from: the files that would be released.

    kind: ``save``: the variant is to be written into ``folder``; ``checkpoint``: the artifact is the files that the
    variant was loaded from; ``none``: nothing is to be written. write: writes the variant into ``folder``, atomically;
    raises WriteError if the disk refuses and BackendError if the library does. spec: how a fresh process loads it from
    there. adapter: the folder of an unmerged adapter, if there is one.
    """

    kind: Literal["save", "checkpoint", "none"]
    folder: Path
    write: Callable[[], None]
    spec: ModelSpec
    adapter: Path | None = None


Rounds = Iterable[Sequence[tuple[str, int]]]
"""Which stages of which tasks a variant needs beyond the first stage of all: one round after another, each of which is
committed before the next one is asked for."""


def name_unit(task: str, stage: int | None = None) -> str:
    """The unit in which the items of a task are stored, or those of one stage of it."""
    return f"items:{task}" if stage is None else f"items:{task}/{stage}"


@dataclass(frozen=True)
class Context:
    """Everything that a probe observes.

    sinks: one per variant; for a probe of the artifact, which observes a single variant, one per suite that requests
    it, all with the same rows. documents: the suite's documents as tokenized for the reference, for probes that read
    tokens (for probes of the artifact: as tokenized for the variant, if token ids differ). texts: the same documents as
    texts with the ``spec`` by which they were read, for probes that read texts; empty if the suite has no documents.
    artifact: for probes that run on it; for probes of files, once it is saved. items: one per variant, for the probe
    of items that are drawn stage by stage; None: all stages are computed, whatever they show.
    """

    reference: LoadedModel
    variants: Sequence[LoadedModel]
    sinks: Sequence[Sink]
    progress: Progress
    documents: Sequence[EncodedDocument] = ()
    texts: Sequence[RawDocument] = ()
    spec: DocumentsSpec | None = None
    artifact: ArtifactSource | None = None
    items: Sequence[Rounds] | None = None


class Probe(Plugin):
    """An observation of a reference and its variants."""

    family = "probes"
    runs: ClassVar[Runs]
    """When the probe runs, and thereby which method is its hook (see above)."""
    reads: ClassVar[Reads] = "tokens"
    """What the probe reads of the suite's documents. If the token ids of two sides differ, a probe that reads tokens of
    both is not run."""
    needs: ClassVar[tuple[Served, ...]] = ()
    """What the probe needs of a model beyond logits."""
    whole_batches: ClassVar[bool] = False
    """Whether the probe reads module calls as whole batches: it is then not run under conditions that arrange batches
    differently from the reference (noise floors)."""
    calibration_ranges: ClassVar[bool] = False
    """Whether the probe needs the ranges of module inputs on the calibration documents, which takes an additional run
    of the variant."""

    sums: ClassVar[str] = ""
    """The table of a shared pass whose rows are sums over all documents, if the probe has one."""

    @classmethod
    def missing(cls) -> tuple[str, ...]:
        """See Plugin.missing: the required hook depends on ``runs``."""
        lacking = super().missing()
        hook = HOOKS.get(getattr(cls, "runs", ""))
        if hook is None:
            return tuple(dict.fromkeys((*lacking, "runs")))
        return (*lacking, hook) if getattr(cls, hook) is getattr(Probe, hook) else lacking

    @property
    def compares_tokens(self) -> bool:
        """Whether its rows require token ids that both sides share."""
        return self.reads == "tokens" and self.runs != "artifact"

    @property
    def reads_documents(self) -> bool:
        """Whether the suite must have documents for it."""
        return self.reads != "nothing"

    def inputs(self) -> str:
        """Hash of what the probe reads apart from the suite's documents (task files, for example): part of the run's
        data key."""
        return ""

    def prepare(self, progress: Progress) -> None:
        """Open what ``inputs`` names, before any model is loaded, so that what cannot be read does not fail after a
        pass. Raises DataError.
        """

    def begin(self, context: PassContext) -> Recorder:
        """Begin a shared pass over all variants: returns a recorder that says which modules it taps, and turns batches
        into rows."""
        raise NotImplementedError

    def combine(self, total: pd.DataFrame, block: pd.DataFrame) -> pd.DataFrame:
        """The table ``sums`` of some blocks of a pass with that of the next one; blocks come in their order."""
        raise NotImplementedError

    def observe(self, context: Context) -> None:
        """Commit the rows of every unit that is not committed yet into the sink of each variant."""
        raise NotImplementedError

    def notes(self, sink: Sink) -> Sequence[Note]:
        """What a reader must know beside the numbers, read back from the committed tables of one variant.

        Asked of probes that run ``alone``.
        """
        return ()


BASE = Probe
