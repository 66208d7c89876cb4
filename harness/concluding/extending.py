"""Sequential sampling of documents and of task items: how far each variant needs them (see ``stopping``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.concluding.failing import list_failed_documents
from harness.concluding.pair import Pair
from harness.concluding.stopping import StoppingRules, find_method, find_own, list_names, plan_looks
from harness.planning.sampling.looks import Look, names_by_document, read_item_looks
from harness.planning.sampling.sample import Sample
from harness.planning.specs import SuiteSpec
from harness.records import ItemsSpec, Verdict


class Extending:
    """The interim looks of one suite for several variants, each with its own rules (see
    harness.lockstep.recording.Looks)."""

    def __init__(self, suite: SuiteSpec, sample: Sample, pairs: Sequence[Pair]) -> None:
        self._sizes = plan_looks(suite, sample)
        self._watches = []
        for pair in pairs:
            own = find_own(pair, suite)
            first = Look(self._sizes, 0, sample.tokens, find_method(pair), sample.clusters)
            self._watches.append(StoppingRules(pair, own, first, names_by_document(own)))

    @property
    def sizes(self) -> Sequence[int]:
        """The numbers of scorable documents at which looks take place."""
        return self._sizes

    def goes_on(self, variant: int, look: int) -> bool:
        """Whether the verdict on the variant is open at this look. If no rule extends the sample, all documents are
        used."""
        return self._watches[variant].goes_on(look)

    def conclude(self) -> None:
        """Record for every pair the look at which it stopped, once the pass has ended."""
        for watch in self._watches:
            number = watch.find_last()
            _conclude(watch, number, watch.list_failed(number))


class ItemRounds:
    """In which order a variant draws the items of a suite's tasks beyond the first look, and where that ends.

        every task at its first look ─▶ a rule failed? end ─▶ suspects if any, else every open task: one look further ─┐
                                            ▲                                                                      │
                                            └──────────────────────────────────────────────────────────────────────┘

    A suspect is a task with a rule that fails if its estimate is the truth. What is likely to fail is drawn first,
    because nothing else needs to be decided once it has.
    """

    def __init__(self, suite: SuiteSpec, pair: Pair) -> None:
        """The documents of the suite, and every task at its first look, must be committed when iteration begins."""
        self._suite, self._pair = find_own(pair, suite), pair
        self._watches: dict[str, StoppingRules] = {}
        self._at: dict[str, int] = {}
        self._to_the_end = any(spec.after_failure == "continue" for spec in _list_specs(self._suite))

    @staticmethod
    def of(suite: SuiteSpec, pair: Pair) -> ItemRounds:
        """Those of a pair, which remember what they have judged."""
        return pair.rounds.setdefault(suite.name, ItemRounds(suite, pair))

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        """Rounds: tasks, each with its next stage. A round must be committed before the next one is asked for."""
        self._read_looks()
        self._at = dict.fromkeys(self._watches, 0)
        while tasks := self._choose():
            for task in tasks:
                self._at[task] += 1
            yield [(task, self._at[task]) for task in tasks]
            self._read_looks()

    def conclude(self) -> None:
        """Record for every task the look at which it was left, once everything is committed."""
        for _ in self:
            pass
        failed = self._list_failed()
        for task, number in self._at.items():
            _conclude(self._watches[task], number, failed)

    def _choose(self) -> list[str]:
        going = [task for task, number in self._at.items() if self._watches[task].goes_on(number)]
        if not going or (self._list_failed() and not self._to_the_end):
            return []
        return [task for task in going if self._watches[task].is_suspect(self._at[task])] or going

    def _list_failed(self) -> list[Verdict]:
        """The blocking rules on the documents of the suite and on its tasks that have failed so far."""
        of_tasks = [each for task, number in self._at.items() for each in self._watches[task].list_failed(number)]
        return [*list_failed_documents(self._suite, self._pair), *of_tasks]

    def _read_looks(self) -> None:
        """The rules on every task, with the clusters of all items that are drawn by now."""
        looks = read_item_looks(self._pair.store, self._suite.name, find_method(self._pair))
        for task, first in looks.items():
            if task not in self._watches:
                names = list_names(self._pair, self._suite, first)
                self._watches[task] = StoppingRules(self._pair, self._suite, first, names)
            self._watches[task].first = first


def _list_specs(suite: SuiteSpec) -> list[ItemsSpec]:
    return [spec for measure in suite.measures if (spec := measure.item_sampling()) is not None]


def _conclude(watch: StoppingRules, number: int, failed: Sequence[Verdict]) -> None:
    observed = watch.pair.observed
    watch.pair.looks.setdefault(watch.suite.name, []).append(watch.look(number))
    observed.stops[f"{watch.suite.name} {watch.first.task}".strip()] = watch.stop(number, failed)
