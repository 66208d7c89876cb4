"""Sequential sampling of documents and of task items: how far each variant needs them (see ``stopping``)."""

from __future__ import annotations

from collections.abc import Sequence

from harness.concluding.pair import Pair
from harness.concluding.stopping import StoppingRules, find_method, find_own, list_names
from harness.planning.sampling.looks import Look, names_by_document, read_item_looks
from harness.planning.sampling.sample import Sample
from harness.planning.specs import SuiteSpec
from harness.statistics import drop_repeated_looks, planned_looks


def plan_looks(suite: SuiteSpec, sample: Sample) -> tuple[int, ...]:
    """The numbers of scorable documents at which looks take place; one look at all of them without a minimum."""
    count = len(sample.tokens)
    least = suite.documents.min if suite.documents and suite.documents.min else count
    clusters = [sample.clusters.get(document, document) for document in sample.tokens]
    return drop_repeated_looks(planned_looks(min(least, count), count), clusters)


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
            _conclude(watch)


class ExtendingItems:
    """The interim looks of the tasks of one suite for several variants (see harness.probes.ItemLooks)."""

    def __init__(self, suite: SuiteSpec, pairs: Sequence[Pair]) -> None:
        self._suite, self._pairs = suite, pairs
        self._watches: dict[tuple[int, str], StoppingRules] = {}

    def goes_on(self, variant: int, task: str, look: int) -> bool:
        """Whether the verdict on a task of the variant is open at this look, whose items are committed."""
        return self._watch(variant, task).goes_on(look)

    def conclude(self) -> None:
        """Record for every pair and task the look at which it stopped, once the items were scored."""
        for variant, pair in enumerate(self._pairs):
            for task in read_item_looks(pair.store, self._suite.name):
                _conclude(self._watch(variant, task))

    def _watch(self, variant: int, task: str) -> StoppingRules:
        """The rules, with the clusters of all items that are drawn by now."""
        pair, own = self._pairs[variant], find_own(self._pairs[variant], self._suite)
        first = read_item_looks(pair.store, own.name, find_method(pair))[task]
        watch = self._watches.get((variant, task))
        if watch is None:
            watch = StoppingRules(pair, own, first, list_names(pair, own, first))
            self._watches[variant, task] = watch
        watch.first = first
        return watch


def _conclude(watch: StoppingRules) -> None:
    number, observed = watch.find_last(), watch.pair.observed
    watch.pair.looks.setdefault(watch.suite.name, []).append(watch.look(number))
    observed.stops[f"{watch.suite.name} {watch.first.task}".strip()] = watch.stop(number)
