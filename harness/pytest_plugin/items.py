"""A variant file as tests: one for every rule of its gates, and one for what no gate file states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.plan import make_plans
from harness.planning.specs import Plan
from harness.pytest_plugin.checking import CheckError, run_of, shorten
from harness.report.digest import Digest, Finding, digest
from harness.system.masking import mask


class RuleError(Exception):
    """A rule does not pass; the message says what a person needs."""


class VariantFile(pytest.File):
    """One variant file."""

    def collect(self) -> Iterable[pytest.Item]:
        """One test a rule, in the order of the files. Raises CollectError with every mistake of the files."""
        try:
            plans = make_plans(shorten(self.path))
        except HarnessError as error:
            raise self.CollectError(str(error)) from error
        for plan in plans:
            yield from self._collect(plan, f"{plan.name}/" if len(plans) > 1 else "")

    def _collect(self, plan: Plan, prefix: str) -> Iterable[pytest.Item]:
        names: Counter[str] = Counter()
        places = []
        for gate in plan.gates:
            for spec in gate.rules:
                name = f"{prefix}{gate.name}/{spec.rule.kind} {spec.rule.metric}"
                names[name] += 1
                unique = name if names[name] == 1 else f"{name} ({names[name]})"
                places.append(mask(spec.where))
                yield RuleItem.from_parent(self, name=unique, variant=plan.name, place=places[-1])
        yield RunItem.from_parent(self, name=f"{prefix}run", variant=plan.name, places=tuple(places))


class _Judged(pytest.Item):
    """A test that passes where its findings pass. What was not run or judged is an error, not a failure."""

    told: Digest

    def __init__(self, *, variant: str, **given: Any) -> None:
        super().__init__(**given)
        self.variant = variant
        # One process checks a variant for all of its rules: pytest -n 4 --dist loadgroup keeps them together.
        self.add_marker(pytest.mark.xdist_group(name=self.parent.nodeid if self.parent else self.nodeid))
        self.found: Sequence[Finding] = ()

    def select(self, told: Digest, wheres: Sequence[str]) -> Sequence[Finding]:
        """The findings that this test is about. wheres: the place of each, as in run.json."""
        raise NotImplementedError

    def setup(self) -> None:
        """Check the variant, once for all of its tests. Raises CheckError for what could not be run or judged."""
        run, folder = run_of(self.config, self.path, self.variant)
        self.told = told = digest(run, folder)
        wheres = [*(each.where for each in run.verdicts), *[""] * (len(told.findings) - len(run.verdicts))]
        self.found = self.select(told, wheres)
        self.user_properties += [("verdict", told.verdict), ("report", told.report)]
        lost = [each for each in self.found if each.stops and each.status not in {"fail", "inconclusive"}]
        if lost:
            raise CheckError(_explain(lost, told))

    def runtest(self) -> None:
        """Raise RuleError unless everything passes; skip where only advisory rules do not."""
        if stopping := [each for each in self.found if each.stops]:
            raise RuleError(_explain(stopping, self.told))
        if warning := [each for each in self.found if each.warns]:
            pytest.skip(f"{self.told.aside}, {warning[0].status}: {warning[0].sentence}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *given: Any, **more: Any) -> Any:
        """The message alone; a traceback through this plugin helps nobody."""
        if isinstance(excinfo.value, RuleError | CheckError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, *given, **more)


class RuleItem(_Judged):
    """One rule of a gate file."""

    def __init__(self, *, place: str, **given: Any) -> None:
        super().__init__(**given)
        self.place = place

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The rule's own line."""
        file, _, line = self.place.rpartition(":")
        return Path(file), int(line) - 1, self.name

    def select(self, told: Digest, wheres: Sequence[str]) -> Sequence[Finding]:
        """What the rule found, for each metric and slice that it matches. Raises CheckError for nothing."""
        found = [each for each, where in zip(told.findings, wheres, strict=True) if where == self.place]
        if not found:
            raise CheckError(f"{self.place}: the rule was not judged\nreport: {told.report}")
        return found


class RunItem(_Judged):
    """What no gate file states: that every measure ran, every output was written, and something was judged."""

    def __init__(self, *, places: tuple[str, ...], **given: Any) -> None:
        super().__init__(**given)
        self.places = places

    def select(self, told: Digest, wheres: Sequence[str]) -> Sequence[Finding]:
        """The findings of no rule of the gates."""
        return [each for each, where in zip(told.findings, wheres, strict=True) if where not in self.places]


def _explain(found: Sequence[Finding], told: Digest) -> str:
    lines = []
    for each in found:
        facts = {
            "found": each.numbers,
            "expected": each.expected,
            "reason": each.reason,
            "limit because": each.why,
            "rule": each.where,
            "what to do": each.remedy,
        }
        lines += [f"{told.name}: {each.name}: {each.status}"]
        lines += [f"  {key}: {value}" for key, value in facts.items() if value]
    return "\n".join([*lines, f"  report: {told.report}"])
