"""What became of each variant of a check, in one row: for the table that ends a check of several."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import FailureClass, HarnessError
from harness.records import Run
from harness.report import display, verdict, words

KL = "divergence.kl_mean"
PERPLEXITY = "perplexity.value"


@dataclass(frozen=True)
class Outcome:
    """One variant: its exit code, verdict and the reason for it, and the numbers by which variants are chosen.

    status: a key of ``words.STATUSES``. failure: the class of failure, empty for one that passed. Numbers that were not
    measured are "–".
    """

    name: str
    code: int
    status: str
    failure: FailureClass | None = None
    reason: str = ""
    bits: str = "–"
    size: str = "–"
    kl: str = "–"
    perplexity: str = "–"

    @classmethod
    def from_error(cls, name: str, error: HarnessError) -> Outcome:
        """That of a variant that could not be run."""
        return cls(name, 2, "error", error.failure, (str(error).splitlines() or [""])[0])

    @classmethod
    def from_run(cls, run: Run, code: int, reason: str = "") -> Outcome:
        """That of a judged run; a ``reason`` given here comes before that of its rules."""
        modules = run.variant.modules
        kl, perplexity = words.find(run, KL), words.find(run, PERPLEXITY)
        return cls(
            name=run.name,
            code=code,
            status=run.verdict,
            failure=run.failure or None,
            reason=reason or verdict.first_reason(run),
            bits=display.number(words.bits_per_weight(modules), 3),
            size=display.size(sum(module.stored_bytes for module in modules) if modules else None),
            kl=display.number(kl.change if kl else None, 3),
            perplexity=display.number(perplexity.variant if perplexity else None),
        )
