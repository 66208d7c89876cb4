"""Probes observe models and leave table rows. They are the only code that touches models while measuring.

Every probe sees one reference and several variants, so that the reference is computed once; the rows about each
variant go into a sink of its own. What is known of a probe is declared on its class: when it runs (``runs``), what it
reads (``reads``), and what it needs of a model beyond logits (``needs``).

    runs          hook                  when
    shared_pass   begin → Recorder      in the one teacher-forced pass of a suite (``harness/lockstep/driver.py``)
    alone         observe               after the shared pass; it drives the models itself, unit by unit
    artifact      observe               after all other probes of all suites, once for each variant

The pass has a hook of its own because it, and not the probe, decides when which model runs. A killed run resumes at the
batch or the unit it was in.
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

Runs = Literal["shared_pass", "alone", "artifact"]
Reads = Literal["tokens", "texts", "nothing"]
HOOKS: dict[str, str] = {"shared_pass": "begin", "alone": "observe", "artifact": "observe"}
"""The method that a probe must have, by when it runs."""


@dataclass(frozen=True)
class ArtifactSource:
    """Where the artifact of one variant comes from: the files that would be released.

    kind: ``save`` the variant is to be written into ``folder``; ``checkpoint`` the artifact is the files that the
    variant was loaded from; ``none`` nothing is to be written. write: puts the variant into ``folder``, whole or not at
    all; raises WriteError where the disk refuses and BackendError where the library does. spec: how a fresh process
    loads it from there. adapter: the folder of the adapter beside its weights then, if there is one.
    """

    kind: Literal["save", "checkpoint", "none"]
    folder: Path
    write: Callable[[], None]
    spec: ModelSpec
    adapter: Path | None = None


@dataclass(frozen=True)
class Context:
    """Everything that a probe observes.

    sinks: one for each variant; for a probe of the artifact, which gets a single variant, one for each suite that asks,
    and all of them get the same rows. documents: those of the suite as the reference tokenizes them, of probes that
    read tokens (of the artifact: as the variant does, where token ids differ). texts: the same as texts with the
    ``spec`` by which they were read, of probes that read texts; none where the suite has no documents. artifact: of
    probes that run on it.
    """

    reference: LoadedModel
    variants: Sequence[LoadedModel]
    sinks: Sequence[Sink]
    progress: Progress
    documents: Sequence[EncodedDocument] = ()
    texts: Sequence[RawDocument] = ()
    spec: DocumentsSpec | None = None
    artifact: ArtifactSource | None = None


class Probe(Plugin):
    """An observation of a reference and its variants."""

    family = "probes"
    runs: ClassVar[Runs]
    """When it runs, and by that which method is its hook (see above)."""
    reads: ClassVar[Reads] = "tokens"
    """What it reads of the suite's documents. Where the token ids of two sides differ, a probe that reads tokens of
    both takes no part."""
    needs: ClassVar[tuple[Served, ...]] = ()
    """What it needs of a model beside logits."""
    whole_batches: ClassVar[bool] = False
    """Whether it reads the calls of modules as whole batches: it then takes no part where these are arranged otherwise
    than those of the reference (noise floors)."""
    calibration_ranges: ClassVar[bool] = False
    """Whether it needs the ranges of module inputs on the calibration documents, which take a run of the variant."""

    @classmethod
    def missing(cls) -> tuple[str, ...]:
        """See Plugin.missing: the hook is the one that ``runs`` asks for."""
        lacking = super().missing()
        hook = HOOKS.get(getattr(cls, "runs", ""))
        if hook is None:
            return tuple(dict.fromkeys((*lacking, "runs")))
        return (*lacking, hook) if getattr(cls, hook) is getattr(Probe, hook) else lacking

    @property
    def compares_tokens(self) -> bool:
        """Whether its rows rest on token ids that both sides have in common."""
        return self.reads == "tokens" and self.runs != "artifact"

    @property
    def reads_documents(self) -> bool:
        """Whether the suite must have documents for it."""
        return self.reads != "nothing"

    def inputs(self) -> str:
        """Hash of what it reads beside the suite's documents (task files, say): part of the run's data key."""
        return ""

    def begin(self, context: PassContext) -> Recorder:
        """A recorder for one shared pass over all variants: which modules it taps, and the rows of every batch."""
        raise NotImplementedError

    def observe(self, context: Context) -> None:
        """Commit the rows of every unit that is not committed yet into the sink of each variant."""
        raise NotImplementedError


BASE = Probe
