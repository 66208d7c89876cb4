"""Sequential sampling: after each interim look, continue only while the verdict is open.

    documents in random order ─▶ batches up to a look ─▶ rows ─▶ intervals of that look ─▶ judge ─┬▶ decided: stop
                                            ▲                                                     │
                                            └───────────────────────── undecided: to the next look ┘

It is decided when every rule is, or when a blocking rule has failed: no further document can then make the variant
pass, and a rule that needs many documents (a rare event) would only keep a broken variant running.

The error is controlled elsewhere: every interval holds at all looks simultaneously
(harness/planning/sampling/looks.py), so a measurement may be judged at any look in the ordinary way. Only the rows are
stored: a run that was killed measures them again and stops at the same look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.forecast.measured import Measured, list_measured
from harness.forecast.needs import needs
from harness.judge import judge
from harness.measures import Measure
from harness.planning.sampling.looks import DEFAULT, Look, drop_repeated_looks, select_waiting_rules
from harness.planning.sampling.sample import Sample
from harness.planning.specs import GateSpec, Plan, SuiteSpec
from harness.records import Measurement, NoiseFloor, Skipped, Stop, Verdict
from harness.records.conclusion import overall
from harness.records.patterns import could_match
from harness.running.measuring import measure_parts, run_measure
from harness.running.noise_floor import Key, add_floors, floors, read_perturbed
from harness.running.pair import Pair
from harness.statistics import planned_looks


@dataclass(frozen=True)
class _RunSoFar:
    """Measurements and a name, as much of an earlier run as planning needs."""

    name: str
    measurements: Sequence[Measurement]


def plan_looks(suite: SuiteSpec, sample: Sample) -> tuple[int, ...]:
    """The numbers of scorable documents at which looks take place; one look at all of them without a minimum."""
    count = len(sample.tokens)
    least = suite.documents.min if suite.documents and suite.documents.min else count
    return drop_repeated_looks(planned_looks(min(least, count), count), sample.tokens, sample.clusters)


class Extending:
    """The interim looks of one suite for several variants, each with its own rules (see
    harness.lockstep.recording.Looks)."""

    def __init__(
        self,
        suite: SuiteSpec,
        sample: Sample,
        pairs: Sequence[Pair],
    ) -> None:
        self._sizes = plan_looks(suite, sample)
        self._watches = [_StoppingRules(pair, _find_own(pair, suite), self._sizes, sample) for pair in pairs]

    @property
    def sizes(self) -> Sequence[int]:
        """The numbers of scorable documents at which looks take place."""
        return self._sizes

    def goes_on(self, variant: int, look: int) -> bool:
        """Whether the verdict on the variant is open at this look. If no rule extends the sample, all documents are
        used."""
        watch = self._watches[variant]
        return not watch.gates or (bool(watch.list_undecided(look)) and not watch.has_failed(look))

    def conclude(self) -> None:
        """Record for every pair the look at which it stopped, once the pass has ended."""
        for variant, watch in enumerate(self._watches):
            last = len(self._sizes) - 1
            look = next((number for number in range(last) if not self.goes_on(variant, number)), last)
            watch.pair.looks[watch.suite.name] = watch.look(look)
            watch.pair.observed.stops[watch.suite.name] = watch.stop(look)


@dataclass
class _StoppingRules:
    """The rules of one variant that extend the sample of a suite."""

    pair: Pair
    suite: SuiteSpec
    sizes: tuple[int, ...]
    sample: Sample
    gates: list[GateSpec] = field(init=False)
    noise: Mapping[Key, NoiseFloor] = field(init=False)
    known: dict[int, list[Verdict]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gates = select_waiting_rules(self.pair.observed.plan.gates, self.suite)
        perturbed = read_perturbed(self.pair.store, self.suite.name)
        self.noise = floors(perturbed, self._measures()) if perturbed else {}

    def look(self, number: int) -> Look:
        """Look ``number``, with the interval method of the gates."""
        named = [gate.sequential for gate in self.pair.observed.plan.gates if gate.sequential]
        return Look(self.sizes, number, self.sample.tokens, named[0] if named else DEFAULT, self.sample.clusters)

    def list_undecided(self, number: int) -> list[Verdict]:
        """The verdicts at a look that are not decisions: an error may be a slice without documents yet."""
        return [verdict for verdict in self._judge(number) if verdict.status not in ("pass", "fail")]

    def has_failed(self, number: int) -> bool:
        """Whether a blocking rule has failed at a look; not where an error, which weighs more, may still vanish."""
        return overall(self._judge(number))[0] == "fail"

    def _judge(self, number: int) -> list[Verdict]:
        if number not in self.known:
            results = self._measure_at(self.look(number))
            measurements = [entry for entry in results if isinstance(entry, Measurement)]
            skipped = [entry for entry in results if isinstance(entry, Skipped)]
            observed = self.pair.observed
            identical = observed.reference.same_as(observed.variant)
            parts = measure_parts(self.pair, self.suite, self.gates, self.look(number), self.noise)
            self.known[number] = list(
                judge(self.gates, measurements, skipped, identical, parts, self._count_elsewhere())
            )
        return self.known[number]

    def stop(self, number: int) -> Stop:
        """The record of stopping at this look."""
        rules = [spec.rule for gate in self.gates for spec in gate.rules]
        undecided = self.list_undecided(number) if self.gates else []
        return Stop(
            suite=self.suite.name,
            looks=self.sizes,
            documents=self.sizes[number],
            watched=tuple(dict.fromkeys(f"{rule.kind} {rule.metric}" for rule in rules)),
            undecided=tuple(dict.fromkeys(f"{verdict.rule} {verdict.metric}" for verdict in undecided)),
            fixed=self._fixed_sample_size(self.look(number)),
        )

    def _measure_at(self, look: Look) -> list[Measurement | Skipped]:
        by_measure = [run_measure(self.pair, self.suite, measure, [], look) for measure in self._measures()]
        return add_floors([entry for found in by_measure for entry in found], self.noise)

    def _measures(self) -> list[Measure]:
        patterns = [spec.rule.metric for gate in self.gates for spec in gate.rules]
        return [
            measure
            for measure in self.suite.measures
            if any(could_match(pattern, name) for pattern in patterns for name in measure.metrics_by_document())
        ]

    def _count_elsewhere(self) -> int:
        """Number of blocking comparisons on metrics of other suites, which count for the Holm correction."""
        plan: Plan = self.pair.observed.plan
        here = {name for measure in self.suite.measures for name in measure.metrics_by_document()}
        rules = [spec.rule for gate in plan.gates for spec in gate.rules]
        blocking = [rule for rule in rules if rule.level == "block" and rule.decide == "interval"]
        others = [
            each.metric.name
            for each in list_measured(plan.suites)
            if each.documents != 0 and not (each.suite == self.suite.name and each.metric.name in here)
        ]
        return sum(could_match(rule.metric, name) for rule in blocking for name in others)

    def _fixed_sample_size(self, look: Look) -> int | None:
        """The fixed sample size at which every extending rule would have enough power, by the variances of the
        documents so far."""
        metrics: list[Measured] = []
        results: list[Measurement | Skipped] = []
        for measure in self._measures():
            metrics += [Measured(metric, self.suite.name, None) for metric in measure.produces()]
            results += run_measure(self.pair, self.suite, measure, [], look, ordinary=True)
        sample = _RunSoFar("itself", [entry for entry in results if isinstance(entry, Measurement)])
        planned = [need for need in needs(self.gates, metrics, sample) if need.outlook != "free"]
        needed = [need.needed for need in planned]
        return None if not needed or None in needed else max(count for count in needed if count is not None)


def _find_own(pair: Pair, suite: SuiteSpec) -> SuiteSpec:
    """The suite as in the pair's plan: measures may have different settings for each variant."""
    return next(each for each in pair.observed.plan.suites if each.name == suite.name)
