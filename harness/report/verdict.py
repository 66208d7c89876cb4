"""The verdict of a run and its reason, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from harness.records import Run
from harness.report import display, rules, words
from harness.report.rules import Judged


def headline(run: Run) -> str:
    """The verdict in two to four words."""
    return words.STATUSES[run.verdict].headline


def reason(run: Run) -> str:
    """The blocking rules that decided the verdict, with the number and the limit of each."""
    judged = rules.prepare_verdicts(run)
    blocking = [item for item in judged if item.verdict.level == "block"]
    decisive = [item for item in blocking if item.verdict.status == run.verdict]
    if not blocking:
        return "No blocking rule was judged, so nothing shows that this variant may be released."
    if run.verdict == "pass":
        return _summarize_pass(judged, len(blocking))
    if not decisive:
        return "No blocking rule gives this verdict; see the rules and notes below."
    count, be = _count_rules(len(decisive), len(blocking)), "is" if len(decisive) == 1 else "are"
    lead = {
        "fail": f"{count} failed",
        "inconclusive": f"Nothing failed, but {_lower_first(count)} {be} inconclusive",
        "error": f"{count} could not be judged",
    }[run.verdict]
    return f"{lead}: {_join_names([_name_with_numbers(item) for item in decisive])}.{_count_open(run, blocking)}"


def first_reason(run: Run) -> str:
    """The first of the rules that decided the verdict, with its number and limit; empty where all passed."""
    decisive = [item for item in rules.prepare_verdicts(run) if item.verdict.level == "block"]
    found = next((item for item in decisive if item.verdict.status == run.verdict), None)
    return "" if found is None or run.verdict == "pass" else _name_with_numbers(found)


def _summarize_pass(judged: Sequence[Judged], blocking: int) -> str:
    lead = "The blocking rule passed." if blocking == 1 else f"All {blocking} blocking rules passed."
    open_ = [item for item in judged if item.verdict.level == "warn" and item.verdict.status not in {"pass", "skipped"}]
    if not open_:
        return lead
    names = _join_names([_name_with_numbers(item) for item in open_])
    count = "One advisory rule" if len(open_) == 1 else f"{len(open_)} advisory rules"
    return f"{lead} {count} did not pass: {names}."


def _count_open(run: Run, blocking: Sequence[Judged]) -> str:
    """How many rules a failure leaves open: a variant that must not ship is drawn no further for them."""
    count = sum(item.verdict.status == "inconclusive" for item in blocking) if run.verdict == "fail" else 0
    return f" {count} more {'is' if count == 1 else 'are'} undecided." if count else ""


def _count_rules(some: int, all_: int) -> str:
    if all_ == 1:
        return "The blocking rule"
    return f"All {all_} blocking rules" if some == all_ else f"{some} of {all_} blocking rules"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _name_with_numbers(item: Judged) -> str:
    """The metric with its number and limit: "perplexity ratio (1.093, limit 1.02)"."""
    name = display.clean(item.title or item.verdict.rule, 80)
    if item.numbers:
        return f"{name} ({item.numbers})"
    return f"{name} ({display.clean(item.because, 160)})" if item.verdict.status == "error" else name


def _join_names(names: Sequence[str], most: int = 4) -> str:
    unique = list(dict.fromkeys(names))
    shown, more = unique[:most], len(unique) - most
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
