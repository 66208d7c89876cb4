"""Sequential sampling: after each interim look, continue only while the verdict is open.

    in random order ─▶ batches up to a look ─▶ rows ─▶ intervals of that look ─▶ judge ─┬▶ decided: stop
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
from dataclasses import dataclass, field, replace
from functools import cached_property

from harness.concluding.measuring import measure_parts, run_measure
from harness.concluding.noise_floor import Key, add_floors, floors, read_perturbed
from harness.concluding.pair import Pair
from harness.forecast.measured import Measured, complete_metric, list_measured
from harness.forecast.needs import needs
from harness.judge import judge
from harness.measures import Measure
from harness.planning.sampling.looks import DEFAULT, Look, select_waiting_rules
from harness.planning.sampling.sample import Sample
from harness.planning.specs import GateSpec, Plan, SuiteSpec
from harness.records import Measurement, Metric, NoiseFloor, Sequential, Skipped, Stop, Verdict, find_metric
from harness.records.conclusion import overall
from harness.records.patterns import could_match
from harness.statistics import drop_repeated_looks, planned_looks


@dataclass(frozen=True)
class _RunSoFar:
    """Measurements and a name, as much of an earlier run as planning needs."""

    name: str
    measurements: Sequence[Measurement]


@dataclass(frozen=True)
class _Judged:
    """The verdicts at a look: by the intervals, and by the estimates alone."""

    verdicts: Sequence[Verdict]
    by_estimate: Sequence[Verdict]


@dataclass
class StoppingRules:
    """The rules of one variant that extend the sample of a suite's documents, or of the items of one of its tasks.

    first: the first look; its interval method is that of the gates. names: the metrics that are measured again at every
    look.
    """

    pair: Pair
    suite: SuiteSpec
    first: Look
    names: Sequence[str]
    gates: list[GateSpec] = field(init=False)
    noise: Mapping[Key, NoiseFloor] = field(init=False)
    known: dict[int, _Judged] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gates = select_waiting_rules(self.pair.observed.plan.gates, self.names)
        perturbed = None if self.first.task else read_perturbed(self.pair.store, self.suite.name)
        self.noise = floors(perturbed, self._measures()) if perturbed else {}

    def goes_on(self, number: int) -> bool:
        """Whether the verdict is open at this look, and more is left. If no rule extends the sample, all of it is
        used."""
        if number == len(self.first.sizes) - 1:
            return False
        return not self.gates or (bool(self.list_undecided(number)) and not self.list_failed(number))

    def find_last(self) -> int:
        """The look at which it stops."""
        return next(number for number in range(len(self.first.sizes)) if not self.goes_on(number))

    def look(self, number: int) -> Look:
        """Look ``number``."""
        return replace(self.first, number=number)

    def list_undecided(self, number: int) -> list[Verdict]:
        """The verdicts at a look that are not decisions: an error may be a slice without documents yet."""
        verdicts = self._judge(number).verdicts if self.gates else ()
        return [verdict for verdict in verdicts if verdict.status not in ("pass", "fail")]

    def list_failed(self, number: int) -> list[Verdict]:
        """The blocking rules that have failed at a look; none where an error, which weighs more, may still vanish."""
        return _list_failed(self._judge(number).verdicts) if self.gates else []

    def is_suspect(self, number: int) -> bool:
        """Whether a blocking rule would fail if the estimate at this look were the truth."""
        return bool(self.gates and _list_failed(self._judge(number).by_estimate))

    def _judge(self, number: int) -> _Judged:
        if number not in self.known:
            results = self._measure_at(self.look(number))
            measurements = [entry for entry in results if isinstance(entry, Measurement)]
            skipped = [entry for entry in results if isinstance(entry, Skipped)]
            observed = self.pair.observed
            identical = observed.reference.same_as(observed.variant)
            parts = measure_parts(self.pair, self.suite, self.gates, self.look(number), self.noise)
            by_interval, by_estimate = (
                judge(gates, measurements, skipped, identical, parts, self._elsewhere)
                for gates in (self.gates, [_compare_estimates(gate) for gate in self.gates])
            )
            self.known[number] = _Judged(by_interval, by_estimate)
        return self.known[number]

    def stop(self, number: int, failed: Sequence[Verdict]) -> Stop:
        """The record of stopping at this look. failed: the blocking rules that had failed by then, whatever their
        sample."""
        rules = [spec.rule for gate in self.gates for spec in gate.rules]
        undecided = self.list_undecided(number)
        cut_short = number < len(self.first.sizes) - 1 and (undecided or not self.gates)
        return Stop(
            suite=self.suite.name,
            task=self.first.task,
            looks=self.first.sizes,
            documents=self.first.sizes[number],
            watched=tuple(dict.fromkeys(f"{rule.kind} {rule.metric}" for rule in rules)),
            undecided=_name(undecided),
            failed=_name(failed) if cut_short else (),
            fixed=self._fixed_sample_size(self.look(number)),
        )

    def _measure_at(self, look: Look) -> list[Measurement | Skipped]:
        by_measure = [run_measure(self.pair, self.suite, measure, [], [look]) for measure in self._measures()]
        return add_floors([entry for found in by_measure for entry in found], self.noise)

    def _measures(self) -> list[Measure]:
        patterns = [spec.rule.metric for gate in self.gates for spec in gate.rules]
        return [
            measure
            for measure in self.suite.measures
            if measure.draws(self.first.task)
            and any(could_match(pattern, each.name) for pattern in patterns for each in measure.produces())
        ]

    @cached_property
    def _elsewhere(self) -> int:
        """Number of blocking comparisons on metrics of other suites, which count for the Holm correction."""
        plan: Plan = self.pair.observed.plan
        here = set(self.names)
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
            found = run_measure(self.pair, self.suite, measure, [], [look], ordinary=True)
            metrics += [Measured(metric, self.suite.name, None) for metric in _list_metrics(measure, found, look)]
            results += found
        sample = _RunSoFar("itself", [entry for entry in results if isinstance(entry, Measurement)])
        planned = [need for need in needs(self.gates, metrics, sample) if need.outlook != "free"]
        needed = [need.needed for need in planned]
        return None if not needed or None in needed else max(count for count in needed if count is not None)


def _list_failed(verdicts: Sequence[Verdict]) -> list[Verdict]:
    if overall(verdicts)[0] != "fail":
        return []
    return [verdict for verdict in verdicts if verdict.level == "block" and verdict.status == "fail"]


def _compare_estimates(gate: GateSpec) -> GateSpec:
    """The gate with rules that compare estimates instead of intervals."""
    rules = [spec.model_copy(update={"rule": spec.rule.model_copy(update={"decide": "point"})}) for spec in gate.rules]
    return gate.model_copy(update={"rules": tuple(rules)})


def _name(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{verdict.rule} {verdict.metric}" for verdict in verdicts))


def plan_looks(suite: SuiteSpec, sample: Sample) -> tuple[int, ...]:
    """The numbers of scorable documents at which looks take place; one look at all of them without a minimum."""
    count = len(sample.tokens)
    least = suite.documents.min if suite.documents and suite.documents.min else count
    clusters = [sample.clusters.get(document, document) for document in sample.tokens]
    return drop_repeated_looks(planned_looks(min(least, count), count), clusters)


def find_own(pair: Pair, suite: SuiteSpec) -> SuiteSpec:
    """The suite as in the pair's plan: measures may have different settings for each variant."""
    return next(each for each in pair.observed.plan.suites if each.name == suite.name)


def find_method(pair: Pair) -> Sequential:
    """The interval method at interim looks that the gates of a pair name."""
    return next((gate.sequential for gate in pair.observed.plan.gates if gate.sequential), DEFAULT)


def list_names(pair: Pair, suite: SuiteSpec, look: Look) -> list[str]:
    """The metrics that the items of a task yield, which its file may not tell, and those that could not be measured."""
    drawn = [measure for measure in suite.measures if measure.draws(look.task)]
    found = [each for measure in drawn for each in run_measure(pair, suite, measure, [], [look])]
    return [each.name if isinstance(each, Measurement) else each.measure for each in found]


def _list_metrics(measure: Measure, found: Sequence[Measurement | Skipped], look: Look) -> list[Metric]:
    """What a measure yields; of items, what it yielded."""
    if not look.task:
        return list(measure.produces())
    seen = [(find_metric(each.name, measure.metrics), each) for each in found if isinstance(each, Measurement)]
    return [complete_metric(metric.model_copy(update={"name": each.name}), each) for metric, each in seen if metric]
