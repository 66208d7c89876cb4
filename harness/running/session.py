"""A reference and its variants, opened once, to compute any units of their suites."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.concluding.conclusion import draws, draws_items, list_alone, passes_tokens, run_pass
from harness.concluding.extending import ItemRounds
from harness.concluding.failing import explain_stop
from harness.concluding.noise_floor import UNIT as FLOOR
from harness.concluding.noise_floor import perturbs
from harness.concluding.pair import Pair, Storage, Unit
from harness.concluding.stopping import plan_looks
from harness.errors import HarnessError
from harness.lockstep.driver import LivePass
from harness.lockstep.stages import run_stages
from harness.models.loaded import LoadedModel, verify_unchanged
from harness.models.loading import load
from harness.planning.sampling.sample import Sample
from harness.planning.specs import Plan, SuiteSpec
from harness.probes import Context, Probe
from harness.progress import Progress
from harness.records import HubData
from harness.running.artifact import observe_artifact
from harness.running.comparing import compare_files
from harness.running.opening import settle_openings
from harness.running.pairs import Documents, Known, LoadedPair, encode_suite, make_pair, suite_texts
from harness.running.perturbing import observe_perturbed
from harness.running.token_texts import WithTokenTexts
from harness.running.units import ARTIFACT, FILES, AllDone, OwnUnits, list_blocks
from harness.system.foreign import LONG, guard
from harness.system.stopwatch import measure_time

if TYPE_CHECKING:
    from harness.tables.access import Sink

OpenStore = Callable[[Path, str], Storage]
"""Opens the place for the tables of one variant, by its folder and data key."""


@dataclass
class Session:
    """Models of one group of plans that stay open.

    outcomes: of every plan, the pair, or why its variant could not be made.
    """

    reference: LoadedModel
    suites: Sequence[SuiteSpec]
    documents: Documents
    outcomes: Sequence[LoadedPair | HarnessError]
    progress: Progress
    _passes: dict[tuple[str, tuple[str, ...]], LivePass] = field(default_factory=dict)
    _spelled: dict[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def pairs(self) -> list[LoadedPair]:
        """The pairs that nothing has gone wrong with."""
        return [each for each in self.outcomes if isinstance(each, LoadedPair) and each.error is None]

    def close(self) -> None:
        """Let go of all tables."""
        for each in self.outcomes:
            if isinstance(each, LoadedPair):
                each.store.close()

    def list_units(self, pair: LoadedPair) -> Iterator[Unit]:
        """Everything that can be computed of a pair, in the order in which one process computes it."""
        for suite in self.suites:
            if suite.name not in pair.facts.token_mismatches and perturbs(suite):
                yield Unit(suite=suite.name, name=FLOOR, kind=FLOOR)
        for suite in self.suites:
            if passes_tokens(suite, pair):
                yield from list_blocks(suite.name, self._open_pass(suite, [pair]).stages)
            for probe in list_alone(suite, pair):
                sink = AllDone()
                probe.observe(self._context(suite, probe, [pair], [sink]))
                staged = draws_items(suite, probe.kind)
                for name in sink.asked:
                    stage = int(name.rpartition("/")[2]) if staged else 0
                    yield Unit(suite=suite.name, name=name, kind=probe.kind, stage=stage)
        yield ARTIFACT

    def observe(self, pairs: Sequence[LoadedPair]) -> None:
        """Compute all units of some pairs, those of several variants together. A pair that fails keeps its error.

        If computing them together fails, each variant is observed alone, so that one failing variant does not affect
        the others: committed rows are not computed again.
        """
        try:
            for suite in self.suites:
                self.observe_documents(suite, pairs)
            going = [pair for pair in pairs if not explain_stop(pair)]
            for suite in self.suites:
                self.observe_alone(suite, going)
        except HarnessError as error:
            if len(pairs) == 1:
                pairs[0].error = error
                return
            for pair in pairs:
                self.observe([pair])

    def compare_files(self, pairs: Sequence[LoadedPair]) -> None:
        """Let the probes of files observe some pairs. A pair that fails keeps its error."""
        for pair in pairs:
            with keep_error(pair), measure_time(pair.observed.seconds, "comparability"):
                compare_files(self.suites, self.reference, pair, self.progress)

    def observe_floors(self) -> None:
        """Run the reference under the conditions of each suite, for all variants whose tokens can be compared."""
        seconds: dict[str, float] = {}
        for suite in self.suites:
            if perturbs(suite):
                with measure_time(seconds, "noise floor"), guard("the noise floor"):
                    self.observe_floor(suite, self.pairs)
        _add_seconds(self.pairs, seconds)

    def observe_floor(self, suite: SuiteSpec, pairs: Sequence[LoadedPair]) -> None:
        """Run the reference under the conditions of a suite, for those variants whose tokens can be compared."""
        sinks = [self.sink(pair, suite) for pair in pairs if suite.name not in pair.facts.token_mismatches]
        observe_perturbed(suite, self.documents[suite.name], self.reference, sinks, self.progress)

    def observe_artifacts(self, pairs: Sequence[LoadedPair]) -> None:
        """Let the artifact probes observe some pairs, one after another. A pair that fails keeps its error."""
        for pair in pairs:
            with keep_error(pair), measure_time(pair.observed.seconds, "artifact"):
                observe_artifact(pair, self.documents, self.reference, self.progress)

    def verify_unchanged(self) -> None:
        """Raise HarnessError if the reference has changed; a variant that has changed keeps that as its error."""
        verify_unchanged(self.reference)
        for pair in self.pairs:
            with keep_error(pair):
                verify_unchanged(pair.variant)

    def observe_documents(self, suite: SuiteSpec, pairs: Sequence[LoadedPair]) -> None:
        """Run the shared pass of a suite, as far as these pairs lack it."""
        seconds: dict[str, float] = {}
        passing = [pair for pair in pairs if passes_tokens(suite, pair)]
        if passing:
            with measure_time(seconds, "shared pass"), guard(f"the shared pass of suite {suite.name}"):
                self._run_pass(suite, passing)
        _add_seconds(passing, seconds)

    def observe_alone(self, suite: SuiteSpec, pairs: Sequence[LoadedPair]) -> None:
        """Let the probes of a suite that run alone compute what these pairs lack."""
        seconds: dict[str, float] = {}
        alone = [(pair, probe) for pair in pairs for probe in list_alone(suite, pair)]
        for key in dict.fromkeys(_key(probe) for _, probe in alone):
            those = [(pair, probe) for pair, probe in alone if _key(probe) == key]
            with measure_time(seconds, key[0]), guard(f"the probe {key[0]}"):
                self._observe_alone(suite, those[0][1], [pair for pair, _ in those])
        _add_seconds(pairs, seconds)

    def run(self, units: Collection[Unit], pairs: Sequence[LoadedPair]) -> None:
        """Compute exactly these units for these pairs, whose tables are to hold nothing else."""
        wanted = {(unit.suite, unit.name) for unit in units}
        kinds = {(unit.suite, unit.kind) for unit in units}
        for pair in pairs:
            pair.own = lambda suite, name: (suite, name) in wanted
        if (ARTIFACT.suite, ARTIFACT.kind) in kinds or (FILES.suite, FILES.kind) in kinds:
            self.compare_files(pairs)
        if (ARTIFACT.suite, ARTIFACT.kind) in kinds:
            self.observe_artifacts([pair for pair in pairs if pair.error is None])
        for suite in self.suites:
            if (suite.name, FLOOR) in kinds:
                self.observe_floor(suite, pairs)
            if any(of == suite.name and kind != FLOOR for of, kind in kinds):
                self.observe_documents(suite, pairs)
                self.observe_alone(suite, pairs)

    def _run_pass(self, suite: SuiteSpec, pairs: Sequence[LoadedPair]) -> None:
        """The shared pass of a suite, with the looks at its tables if it draws documents until rules are decided."""
        live, sample = self._pass(suite, pairs), Sample.of_documents(self.documents[suite.name])
        sinks = [self.sink(pair, suite) for pair in pairs]
        if any(pair.own is not None for pair in pairs):
            run_stages(live.stages, sinks, None, live.run)
        else:
            live.set_up()
            run_pass(suite, sample, pairs, live.stages, sinks, live.run)
            self._passes.clear()  # which holds what its recorders saw last
        for pair in pairs:
            pair.observed.notes += [note for note in live.late_notes if note not in pair.observed.notes]

    def _observe_alone(self, suite: SuiteSpec, probe: Probe, pairs: Sequence[LoadedPair]) -> None:
        context = self._context(suite, probe, pairs, [self.sink(pair, suite) for pair in pairs])
        if draws_items(suite, probe.kind) and all(pair.own is None for pair in pairs):
            context = replace(context, items=[ItemRounds.of(suite, pair) for pair in pairs])
        probe.observe(context)

    def sink(self, pair: Pair, suite: SuiteSpec) -> Sink:
        """Receives the rows about a pair."""
        sink: Sink = WithTokenTexts(pair.store.sink(suite.name), self.reference.tokenizer, self._spelled)
        return OwnUnits(sink, lambda unit: pair.computes(suite.name, unit))

    def _pass(self, suite: SuiteSpec, pairs: Sequence[LoadedPair]) -> LivePass:
        """The pass of a suite over some pairs, whose models are prepared when its first block is computed."""
        key = suite.name, tuple(pair.observed.plan.name for pair in pairs)
        if key not in self._passes:
            self._passes[key] = self._open_pass(suite, pairs)
        return self._passes[key]

    def _open_pass(self, suite: SuiteSpec, pairs: Sequence[LoadedPair]) -> LivePass:
        documents = self.documents[suite.name]
        return LivePass(
            [self.reference, *(pair.variant for pair in pairs)],
            documents,
            [probe for probe in suite.probes if probe.runs == "shared_pass"],
            [self.sink(pair, suite) for pair in pairs],
            self.progress,
            sizes=plan_looks(suite, Sample.of_documents(documents)) if draws(suite) else (),
        )

    def _context(self, suite: SuiteSpec, probe: Probe, pairs: Sequence[LoadedPair], sinks: Sequence[Sink]) -> Context:
        return Context(
            self.reference,
            [pair.variant for pair in pairs],
            sinks,
            self.progress,
            documents=self.documents[suite.name] if probe.reads == "tokens" else (),
            texts=suite_texts(suite) if probe.reads == "texts" else (),
            spec=suite.documents,
        )


def open_session(
    plans: Sequence[Plan],
    folders: Sequence[Path],
    progress: Progress,
    store: OpenStore,
    made: Mapping[str, LoadedModel] | None = None,
) -> Session:
    """Open the inputs, the reference and all variants of a group of plans.

    made: variants that another process has made, by name. Raises HarnessError for what is wrong with the reference or
    the inputs.
    """
    seconds: dict[str, float] = {}
    with measure_time(seconds, "open inputs"):
        _open_inputs(plans[0].suites, progress)
    with measure_time(seconds, "load reference"):
        with guard("loading the reference", patience=LONG):
            reference = load(plans[0].reference, Path(plans[0].reference.model).name)
        suites = settle_openings(plans[0], reference.tokenizer).suites
    with measure_time(seconds, "encode documents"):
        documents = {suite.name: encode_suite(suite, reference) for suite in suites}
    outcomes: list[LoadedPair | HarnessError] = []
    known = Known()
    for done, (plan, folder) in enumerate(zip(plans, folders, strict=True)):
        progress.step("make variants", done, len(plans))
        try:
            with guard(f"making {plan.name}", patience=LONG):
                opened, own = partial(store, folder), dict(seconds)
                handed = (made or {}).get(plan.name)
                with measure_time(own, "describe variant"):
                    outcomes.append(make_pair(plan, folder, reference, documents, known, own, opened, handed))
        except HarnessError as error:
            outcomes.append(error)
    progress.step("make variants", len(plans), len(plans))
    return Session(reference, suites, documents, outcomes, progress)


def _open_inputs(suites: Sequence[SuiteSpec], progress: Progress) -> None:
    """Open tasks and data sets of the hub before any model is loaded: what cannot be read fails here, and not after a
    pass. Raises DataError. The plan has opened the files of documents.
    """
    for suite in suites:
        if suite.documents is not None and isinstance(suite.documents.data, HubData):
            with guard(f"opening the documents of suite {suite.name}"):
                suite_texts(suite)
        for probe in suite.probes:
            with guard(f"opening what the probe {probe.kind} reads"):
                probe.prepare(progress)


@contextmanager
def keep_error(pair: Pair) -> Iterator[None]:
    """Let a HarnessError of the block be the error of the pair, so that the others go on."""
    try:
        yield
    except HarnessError as error:
        pair.error = error


def _key(probe: Probe) -> tuple[str, str]:
    """What tells probes apart that observe different things."""
    return probe.kind, probe.model_dump_json()


def _add_seconds(pairs: Sequence[Pair], seconds: Mapping[str, float]) -> None:
    for pair in pairs:
        for stage, value in seconds.items():
            pair.observed.seconds[stage] = pair.observed.seconds.get(stage, 0.0) + value
