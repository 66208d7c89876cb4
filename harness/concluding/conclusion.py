"""What the tables of a pair come to, once all units are there: interim looks, notes, measurements. No model is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.concluding.extending import Extending, ItemRounds
from harness.concluding.extra_ids import note_extra_mass
from harness.concluding.failing import explain_stop
from harness.concluding.measuring import measure, read_apart
from harness.concluding.noise_floor import read_perturbed
from harness.concluding.pair import Pair
from harness.concluding.saved_files import conclude_artifact, conclude_comparison
from harness.lockstep.batches import Block
from harness.lockstep.pass_report import read_report
from harness.lockstep.stages import Wanted, run_stages, store_sums
from harness.planning.sampling.sample import Sample
from harness.planning.specs import SuiteSpec
from harness.plugins import load
from harness.probes import Probe
from harness.records import Note
from harness.records.own_rules import REPEATS

if TYPE_CHECKING:
    from harness.tables.access import Sink


def draws(suite: SuiteSpec) -> bool:
    """Whether documents are drawn until the rules on them are decided."""
    return suite.documents is not None and suite.documents.min is not None


def draws_items(suite: SuiteSpec, kind: str) -> bool:
    """Whether the probe ``kind`` of a suite draws items of tasks until the rules on them are decided."""
    return any(measure.table == kind and measure.item_sampling() for measure in suite.measures)


def passes_tokens(suite: SuiteSpec, pair: Pair) -> bool:
    """Whether a pair takes part in the shared pass of a suite."""
    return suite.name not in pair.facts.token_mismatches and any(p.runs == "shared_pass" for p in suite.probes)


def list_alone(suite: SuiteSpec, pair: Pair) -> list[Probe]:
    """The probes that observe a pair alone: those whose needs its variant supports and, if they compare tokens, only
    where both sides have the same token ids. Where they have not, further ones replace those of tokens.
    """
    apart = suite.name in pair.facts.token_mismatches
    found = [
        probe
        for probe in suite.probes
        if probe.runs == "alone" and probe.kind not in pair.facts.unsupported and not (probe.compares_tokens and apart)
    ]
    return [*found, *(load(Probe, kind)() for kind in read_apart(suite))] if apart else found


def run_pass(
    suite: SuiteSpec,
    sample: Sample,
    pairs: Sequence[Pair],
    stages: Sequence[Sequence[Block]],
    sinks: Sequence[Sink],
    compute: Callable[[Wanted], None],
) -> None:
    """Have the blocks of a suite's pass computed, by whomever, with the looks at its tables; then add up the sums."""
    looks = Extending(suite, sample, pairs) if draws(suite) else None
    run_stages(stages, sinks, looks, compute)
    probes = [probe for probe in suite.probes if probe.runs == "shared_pass"]
    for sink in sinks:
        store_sums(probes, sink)
    if looks is not None:
        looks.conclude()


def conclude(pair: Pair) -> None:
    """Notes and measurements of a pair, all of whose tables are there."""
    suites = pair.observed.plan.suites
    conclude_comparison(pair, suites)
    for suite in suites:
        if suite.name not in pair.facts.token_mismatches and (found := read_perturbed(pair.store, suite.name)):
            _note(pair, [found.note])
    stopped = explain_stop(pair)
    for suite in suites:
        if passes_tokens(suite, pair):
            _conclude_pass(pair, suite)
        if not stopped:
            _conclude_alone(pair, suite)
    if stopped:
        text = f"tasks, generated texts, times, weights and the artifact: {stopped}; rules on them are undecided"
        _note(pair, [Note(topic="stop_at_failure", text=text)])
    else:
        conclude_artifact(pair)
    measure(pair, suites, stopped)


def _conclude_pass(pair: Pair, suite: SuiteSpec) -> None:
    report = read_report([pair.store.sink(suite.name)])
    _note(pair, [*report.notes, *report.variant_notes[0], *note_extra_mass(pair.store, suite.name)])
    if report.repeat is not None and report.repeat.max_abs_diff != 0 and suite.noise_floor is None:
        pair.observed.broken[REPEATS].append(
            f"suite {suite.name}: {report.repeat}, so a difference between reference and variant may be none; give "
            "the suite a noise_floor, by which every metric is then judged, or make the model deterministic"
        )


def _conclude_alone(pair: Pair, suite: SuiteSpec) -> None:
    for probe in list_alone(suite, pair):
        _note(pair, probe.notes(pair.store.sink(suite.name)))
    ItemRounds.of(suite, pair).conclude()


def _note(pair: Pair, notes: Sequence[Note]) -> None:
    """Add notes; another suite may have said the same."""
    pair.observed.notes += [note for note in notes if note not in pair.observed.notes]
