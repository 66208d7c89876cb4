"""What is known of a variant and its reference without either model: enough to judge from tables alone."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from harness.lockstep.stages import SETUP, SUMS
from harness.planning.sampling.looks import Look
from harness.planning.specs import Plan
from harness.records import (
    Artifact,
    Comparison,
    Environment,
    Identity,
    Measurement,
    Note,
    Record,
    Skipped,
    Slice,
    Stop,
    Verdict,
)
from harness.records.own_rules import WEIGHTS_FINITE, OwnRule
from harness.tables.access import Tables

if TYPE_CHECKING:
    from pathlib import Path

    from harness.concluding.extending import ItemRounds
    from harness.errors import HarnessError
    from harness.tables.access import Sink


class Unit(Record):
    """A part of the work on a suite that any process can do by itself, and whose rows are committed together.

    kind: ``shared_pass``, ``noise_floor``, ``artifact`` (which belongs to no suite), or the kind of a probe that runs
    alone. stage: after which interim look of the suite it is asked for. tokens: scored in it, for units of a pass.
    """

    suite: str
    name: str
    kind: str
    stage: int = 0
    tokens: int = 0


class Storage(Tables, Protocol):
    """Where the tables of one variant are kept."""

    @property
    def folder(self) -> Path:
        """The folder of the tables, beside which the artifact is saved."""
        ...

    def sink(self, suite: str) -> Sink:
        """Receives the rows of a suite."""
        ...

    @property
    def messages(self) -> tuple[str, ...]:
        """What happened to tables that were there before."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


@dataclass
class Observed:
    """The record of one variant after its run: everything that run.json needs except the verdicts."""

    plan: Plan
    reference: Identity
    variant: Identity
    environment: Environment
    data_key: str
    measurements: list[Measurement] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    stops: dict[str, Stop] = field(default_factory=dict)
    """By suite (and task) with sequential sampling: where it stopped."""
    notes: list[Note] = field(default_factory=list)
    artifact: Artifact | None = None
    comparison: Comparison | None = None
    messages: list[str] = field(default_factory=list)
    """What happened to the tables of an earlier, unfinished run: shown in the terminal only, because it changes no
    number."""
    broken: dict[OwnRule, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Rules of the harness itself that do not hold, each with what breaks it."""
    seconds: dict[str, float] = field(default_factory=dict)


class PairFacts(Record):
    """What a process that has both models knows of them beside the tables, for one that has neither."""

    reference: Identity
    variant: Identity
    environment: Environment
    data_key: str
    depends: dict[str, str]
    """Hashes of all that the data key depends on, by what it is."""
    vocabulary: int
    """Number of logits of the reference."""
    token_mismatches: dict[str, str]
    """Suites whose tokens cannot be compared, with the reason: different token ids, or different vocabularies."""
    unsupported: dict[str, str]
    """Kinds of probes that need what the engine or a step of the variant does not support, with the reason."""
    hidden_weights: str = ""
    """Why the weights of the variant's modules cannot be compared; empty if they can."""
    notes: tuple[Note, ...] = ()
    """Of making the variant."""
    non_finite: str = ""
    """Weights of the variant that are NaN or infinite and are not so in the reference; empty if there are none."""


@dataclass
class Pair:
    """One variant with the reference during the run, and its outcome: the observations, or the error."""

    facts: PairFacts
    store: Storage
    observed: Observed
    looks: dict[str, list[Look]] = field(default_factory=dict)
    """By suite: the looks at which its documents, and the items of each task, were left, where they are drawn."""
    rounds: dict[str, ItemRounds] = field(default_factory=dict)
    """By suite: where the items of its tasks are drawn, with what was judged for it."""
    failed: dict[str, list[Verdict]] = field(default_factory=dict)
    """By suite: the blocking rules on its documents that have failed (see ``failing``)."""
    error: HarnessError | None = None
    """Why the variant could not be observed; nothing is measured then."""
    own: Callable[[str, str], bool] | None = None
    """Which units, by suite and name, this process computes; None: all of them."""

    def computes(self, suite: str, unit: str) -> bool:
        """Whether this process computes a unit. The report of a pass is made by every process that computes a part of
        it, the sums of a pass by one that has all of its blocks."""
        return self.own is None or unit == SETUP or (unit != SUMS and self.own(suite, unit))


def begin(plan: Plan, facts: PairFacts, store: Storage, seconds: dict[str, float]) -> Observed:
    """The record of a variant of which nothing is measured yet. plan: with its openings settled."""
    observed = Observed(plan, facts.reference, facts.variant, facts.environment, facts.data_key, seconds=seconds)
    observed.messages += store.messages
    observed.notes += facts.notes
    if facts.non_finite:
        observed.broken[WEIGHTS_FINITE].append(facts.non_finite)
    return observed


def hash_data(content: object) -> str:
    """The hash of what tables depend on, or of a part of it; that of the whole is the data key."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
