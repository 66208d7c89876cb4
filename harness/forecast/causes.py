"""Why a rule can or cannot decide on the planned sample: a closed list of causes, and the words for each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from harness.statistics.power import TARGET

Outlook = Literal["decides", "weak", "never", "free", "unknown"]
Remedy = Literal["", "documents", "point"]


@dataclass(frozen=True)
class Effect:
    """What follows from a cause.

    outlook: ``decides`` the sample has the power TARGET; ``weak`` it has less; ``never`` the rule cannot pass, whatever
    is measured; ``free`` the rule does not rest on a sample; ``unknown`` it cannot be planned. words: with fields of
    `words`. field: the field of the rule that is to blame (``limit``: the one that holds the limit). remedy: what
    helps; ``point`` a comparison without interval, ``documents`` another number of documents or another limit.
    """

    outlook: Outlook
    words: str
    field: Literal["limit", "metric", "min_documents"] = "limit"
    remedy: Remedy = "documents"


class Cause(Enum):
    """Why a rule can or cannot decide."""

    POWERED = Effect("decides", "n = {documents} {units}; {target} power needs n = {needed}")
    UNDERPOWERED = Effect("weak", "power {power:.0f} % at n = {documents} {units}; {target} power needs n = {needed}")
    TOO_FEW = Effect(
        "never", "cannot pass at n = {documents} {units}, even without any change; {target} power needs n = {needed}"
    )
    NO_SAMPLE = Effect("never", "no interval at n = {documents} {units}", "metric")
    MIN_DOCUMENTS = Effect(
        "never", "min_documents {needed} is more than the n = {documents} {units} of the plan", "min_documents"
    )
    MISFIT = Effect("never", "{detail}")
    IMPOSSIBLE = Effect("never", "no value of {metric} passes this rule")
    UNCHANGED_FAILS = Effect("never", "not even an unchanged variant passes")
    REFERENCE_FAILS = Effect("never", "the reference itself does not meet the limit")
    NO_INTERVAL = Effect(
        "never", "{metric} has no interval, so a rule that decides by interval never passes", "metric", "point"
    )
    MAYBE_NO_INTERVAL = Effect(
        "unknown",
        "{metric} may have no interval, and a rule that decides by interval then never passes; write decide: point",
    )
    POINT = Effect("free", "compares the point estimate alone (decide: point), whatever n is")
    COUNTED = Effect("free", "counted, not sampled: no n is needed")
    NO_LIMIT = Effect("unknown", "no limit: every value passes")
    UNKNOWN_NAMES = Effect("unknown", "the metrics of the task are known only when it runs; name an earlier run")
    UNKNOWN_VALUE = Effect("unknown", "depends on the variant's own value, known only from an earlier run")
    UNKNOWN_VARIANCE = Effect("unknown", "the variance of {metric} is unknown; name an earlier run that measured it")
    UNKNOWN_SIZE = Effect(
        "unknown", "{target} power needs n = {needed} {units}; the plan's n is known only when it runs"
    )

    @property
    def outlook(self) -> Outlook:
        """Whether the rule will decide."""
        return self.value.outlook

    def words(
        self, metric: str, units: str, documents: int | None, needed: int | None, power: float | None, detail: str
    ) -> str:
        """The cause in a sentence, with its numbers."""
        return self.value.words.format(
            metric=metric,
            units=units,
            documents=documents,
            needed="∞ (no sample is enough)" if needed is None else needed,
            power=100 * (power or 0.0),
            target=f"{100 * TARGET:.0f} %",
            detail=detail,
        )
