"""Which units of a variant are asked for, round by round, as far as the tables of those before show that it needs them.

documents of a suite   noise floor, first blocks ─▶ look ─▶ blocks of the next stage ─▶ …
a probe alone          everything; items: the first of every task ─▶ look ─▶ the next ─▶ …
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from harness.cluster.concluding import BLOCK, refuse_missing
from harness.concluding.conclusion import draws, draws_items, passes_tokens, run_pass
from harness.concluding.extending import Extending, ItemRounds
from harness.concluding.failing import explain_stop
from harness.concluding.noise_floor import UNIT as FLOOR
from harness.concluding.pair import Pair
from harness.concluding.pair import Unit as PlannedUnit
from harness.planning.sampling.sample import Sample
from harness.planning.specs import SuiteSpec
from harness.probes import name_unit
from harness.running.units import stages_of


@dataclass
class Draw:
    """The documents of a suite, or what a probe of it observes alone, in rounds for variants whose models are open
    together.

    rounds: by variant, the names of the units of each round, which it asks for once those before are stored. after:
    draws that must have ended before all rounds but the first ``free`` ones.
    """

    suite: SuiteSpec
    rounds: dict[str, Iterator[Sequence[str]]]
    after: Sequence[Draw] = ()
    free: int = 0
    open: Counter[str] = field(default_factory=Counter)
    """Units of this round that are not closed: by name, how many for several variants each."""

    @property
    def ready(self) -> bool:
        """Whether another round may begin."""
        return not self.open and bool(self.rounds) and (self.free > 0 or all(each.ended for each in self.after))

    @property
    def ended(self) -> bool:
        """Whether nothing more will be drawn."""
        return not self.open and not self.rounds


@dataclass(frozen=True)
class Rounds:
    """The rounds of one variant. units: all that could be asked for; samples: the documents of each suite."""

    pair: Pair
    units: Sequence[PlannedUnit]
    samples: Mapping[str, Sample]

    def draw_documents(self, suite: SuiteSpec) -> Iterator[Sequence[str]]:
        """The noise floor and the first blocks of a pass, then those of each stage that is needed."""
        yield self._list_first(suite, BLOCK)
        looks = Extending(suite, self.samples[suite.name], [self.pair]) if draws(suite) else None
        stages = stages_of(self.units, suite.name)
        for number, blocks in enumerate(stages[1:]):
            if looks is not None and not looks.goes_on(0, number):
                break
            yield [block.unit for block in blocks]
        drawn = any(draws_items(suite, unit.kind) for unit in self.units)
        if (drawn or self.pair.observed.plan.stop_at_failure) and passes_tokens(suite, self.pair):
            sink = self.pair.store.sink(suite.name)
            run_pass(suite, self.samples[suite.name], [self.pair], stages, [sink], refuse_missing)

    def draw_alone(self, suite: SuiteSpec, kind: str) -> Iterator[Sequence[str]]:
        """What a probe observes, unless documents have stopped the variant."""
        if self.stops:
            return
        yield self._list_first(suite, kind)
        if draws_items(suite, kind):
            for wanted in ItemRounds.of(suite, self.pair):
                yield [name_unit(task, stage) for task, stage in wanted]

    @property
    def stops(self) -> bool:
        """Whether documents have decided that nothing more is measured, once all of them are drawn."""
        return self.pair.observed.plan.stop_at_failure and bool(explain_stop(self.pair))

    def _list_first(self, suite: SuiteSpec, kind: str) -> list[str]:
        of = (suite.name, kind)
        return [unit.name for unit in self.units if unit.stage == 0 and (unit.suite, kind_of(unit.kind)) == of]


def plan_draws(suites: Sequence[SuiteSpec], rounds: Mapping[str, Rounds]) -> dict[tuple[str, str], Draw]:
    """Every draw, by suite and kind of unit.

    Items after the first look wait for the documents of their suite, and everything for all documents where these may
    stop a variant.
    """
    found = {
        (suite.name, BLOCK): Draw(suite, {name: each.draw_documents(suite) for name, each in rounds.items()})
        for suite in suites
    }
    documents = tuple(found.values())
    stopping = any(each.pair.observed.plan.stop_at_failure for each in rounds.values())
    for suite in suites:
        after, free = (documents, 0) if stopping else ((found[suite.name, BLOCK],), 1)
        kinds = {unit.kind: None for each in rounds.values() for unit in each.units if unit.suite == suite.name}
        for kind in kinds:
            if kind_of(kind) != BLOCK:
                each_round = {name: each.draw_alone(suite, kind) for name, each in rounds.items()}
                found[suite.name, kind] = Draw(suite, each_round, after, free)
    return found


def kind_of(kind: str) -> str:
    """The kind of the draw to which units of a kind belong: looks at documents need the noise floor too."""
    return BLOCK if kind == FLOOR else kind
