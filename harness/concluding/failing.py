"""Whether the documents of a variant have already decided that it must not be released, and what is left out then."""

from __future__ import annotations

from dataclasses import replace

from harness.concluding.pair import Pair
from harness.concluding.stopping import StoppingRules, find_method, find_own, plan_looks
from harness.planning.sampling.looks import Look, names_by_document
from harness.planning.sampling.sample import Sample
from harness.planning.specs import SuiteSpec
from harness.records import Verdict


def list_failed_documents(suite: SuiteSpec, pair: Pair) -> list[Verdict]:
    """The blocking rules on the documents of a suite that have failed, once its pass has ended."""
    if suite.name not in pair.failed:
        pair.failed[suite.name] = _list_failed(find_own(pair, suite), pair)
    return pair.failed[suite.name]


def explain_stop(pair: Pair) -> str:
    """Why nothing but the passes of its suites is measured of a variant, all of which have ended; empty if all is."""
    plan = pair.observed.plan
    failed = [each for suite in plan.suites for each in list_failed_documents(suite, pair)] * plan.stop_at_failure
    return f"not measured, because {failed[0].rule} {failed[0].metric} had failed (stop_at_failure)" if failed else ""


def _list_failed(suite: SuiteSpec, pair: Pair) -> list[Verdict]:
    documents = pair.store.read(suite.name, "documents")
    if documents is None:
        return []
    sample = Sample.of_table(documents)
    sizes = plan_looks(suite, sample)
    whole = Look(sizes, len(sizes) - 1, sample.tokens, find_method(pair), sample.clusters)
    last = next((look for look in pair.looks.get(suite.name, ()) if not look.task), whole)
    watch = StoppingRules(pair, suite, replace(last, number=0), names_by_document(suite))
    return watch.list_failed(last.number)
