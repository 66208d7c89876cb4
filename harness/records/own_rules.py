"""Rules of the harness itself: no gate file states them, and none can override them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from harness.errors import FailureClass
from harness.records.result import Level, Status, Verdict

OWN_GATE = "harness"
"""Gate name of verdicts that belong to no gate file."""


class OwnRule(NamedTuple):
    """One such rule; status: that of a run in which it does not hold.

    about: what it is about: the run, its reference, or the variant by itself, whatever the reference says.
    """

    name: str
    expected: str
    failure: FailureClass
    why: str
    status: Status = "error"
    about: Literal["run", "reference", "variant"] = "run"

    def break_with(self, found: str, level: Level = "block") -> Verdict:
        """The verdict that the rule does not hold: the run cannot pass, whatever its other rules say."""
        return Verdict(
            gate=OWN_GATE,
            rule=self.name,
            metric="",
            status=self.status,
            expected=self.expected,
            found=found,
            because=found,
            level=level,
            where="",
            why=self.why,
            failure=self.failure,
        )


MEASURES_RUN = OwnRule(
    "every measure runs",
    "every measure of the suite computes",
    "accounting",
    "numbers of a run with a failed part cannot be trusted",
)
OUTPUTS_WRITTEN = OwnRule(
    "every output is written",
    "all outputs that the variant file asks for",
    "resources",
    "who reads only an output must not find less than the run holds",
)
REFERENCE_PREDICTS = OwnRule(
    "the reference predicts the texts",
    "a lower NLL than uniform and unigram models",
    "comparability",
    "a variant of a model that predicts nothing loses nothing, however damaged it is",
    about="reference",
)
REPEATS = OwnRule(
    "the reference repeats itself",
    "two runs of one batch are equal",
    "numerics",
    "where the reference differs from itself, a difference to the variant may be none",
    "inconclusive",
)
WEIGHTS_FINITE = OwnRule(
    "every weight is finite",
    "finite numbers",
    "numerics",
    "a weight that no document reached is reached by some user's text",
    "fail",
    about="variant",
)
IN_ORDER = (MEASURES_RUN, REFERENCE_PREDICTS, REPEATS, WEIGHTS_FINITE)
"""The rules that a run may break while it observes, in the order in which they are told."""


def judge_own_rules(broken: Mapping[OwnRule, Sequence[str]]) -> tuple[Verdict, ...]:
    """The verdicts of the rules that do not hold. broken: what breaks each of them.

    A variant that fails by itself fails by any reference, so what is wrong with the reference is then told as advice:
    the definite cause decides.
    """
    fails = any(rule.about == "variant" and texts for rule, texts in broken.items())
    return tuple(
        rule.break_with(text, "warn" if fails and rule.about == "reference" else "block")
        for rule in IN_ORDER
        for text in broken.get(rule, ())
    )
