"""Selftest: make every variation of the library, measure them all beside one reference, let the gate judge each.

suite, gate ─▶ library ─▶ plans ─ run_group ─▶ measurements ─ judge ─▶ outcomes ─▶ kill table, <gate>.json
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError, PlanError, Problem
from harness.judge import judge
from harness.planning.gate_file import Gate, check_metrics, read_gate
from harness.planning.locating import explain_unknown_name
from harness.planning.specs import GateSpec, Plan, SuiteSpec, VariantSpec
from harness.planning.suite_file import Suite, read_suite
from harness.records import ModelSpec, Verdict
from harness.records.conclusion import overall
from harness.records.own_rules import MEASURES_RUN, judge_own_rules
from harness.selftest.mutant import Mutant, MutantError
from harness.selftest.mutants import NotApplicable, Variation, library
from harness.selftest.outcomes import Outcome, assess, exit_code, record_omission, record_refusal
from harness.selftest.table import print_tables
from harness.system.environment import prepare_threads
from harness.system.files import write_atomic
from harness.system.lean_imports import import_transformers
from harness.system.masking import mask
from harness.terminal import Terminal

if TYPE_CHECKING:
    from harness.concluding.pair import Observed

UNCHANGED = "unchanged"
"""The variant that is the reference itself: a gate that stops it can judge nothing with this suite."""
ARTIFACT_METRICS = "artifact."
"""How the names of metrics of saved files begin. A gate is tried without its rules on them, a suite without such
measures."""
TOGETHER = 4 * 2**30
"""Bytes of weights of the variants that share one pass, at most."""


def selftest(model: str, gate: str, suite: str, only: Sequence[str], out: Path, terminal: Terminal) -> int:
    """Judge every variation of ``model`` (or those named in ``only``) by a gate; print the kill table.

    Returns 0 if at least 95 % of the mutants are killed and no harmless change is stopped, else 1. Raises PlanError
    for files that do not fit together, and HarnessError where the reference itself cannot be measured or judged.
    """
    measured, required = _read(suite, gate, Path.cwd())
    prepare_threads()
    chosen = _choose(only)
    # Not named after the gate: another gate on the same suite finds everything measured already.
    folder = out / "selftest"
    terminal.stage(f"selftest of the gate {required.name} on {model}: {len(chosen)} variations, suite {measured.name}")
    with tempfile.TemporaryDirectory(prefix="harness-selftest-") as scratch:
        outcomes = _GateTrial(model, measured, required, folder, terminal).run(chosen, Path(scratch))
    print_tables(outcomes, required, terminal)
    code = exit_code(outcomes)
    content = {"model": model, "gate": required.name, "suite": measured.name, "exit_code": code}
    text = json.dumps(content | {"outcomes": [asdict(each) for each in outcomes]}, indent=1, ensure_ascii=False)
    write_atomic(folder / f"{required.name}.json", mask(text).encode())
    return code


class _GateTrial:
    """One gate on one model."""

    def __init__(self, model: str, suite: SuiteSpec, gate: GateSpec, folder: Path, terminal: Terminal) -> None:
        self.reference = ModelSpec(model=model)
        self.suite, self.gate, self.folder, self.terminal = suite, gate, folder, terminal

    def run(self, chosen: Sequence[Variation], scratch: Path) -> list[Outcome]:
        """The outcome of every chosen variation, in their order."""
        outcomes = {each.name: record_omission(each, each.equivalent) for each in chosen if each.equivalent}
        plans = {UNCHANGED: self._plan(UNCHANGED, VariantSpec())}
        may_fail: dict[str, Plan] = {}
        for each in (each for each in chosen if not each.equivalent):
            try:
                variant = self._variant(each, scratch)
            except NotApplicable as error:
                outcomes[each.name] = record_omission(each, str(error))
                continue
            # A variant that fails makes the harness observe its whole group again one by one.
            group = may_fail if each.on_disk and each.kind == "mutant" else plans
            group[each.name] = self._plan(each.name, variant)
        results = self._observe(plans) | self._observe(may_fail)
        verdicts = {name: self._judge(found) for name, found in results.items() if not isinstance(found, HarnessError)}
        self._check_unchanged(results[UNCHANGED], verdicts.get(UNCHANGED, ()))
        for each in chosen:
            if each.name not in outcomes:
                outcomes[each.name] = self._outcome(each, results, verdicts)
        return [outcomes[each.name] for each in chosen]

    def _variant(self, variation: Variation, scratch: Path) -> VariantSpec:
        if variation.on_disk is None:
            return VariantSpec(compress=(Mutant(variation=variation.name),))
        from harness.models.sources import resolve

        folder = scratch / variation.name
        shutil.copytree(resolve(self.reference).folder, folder, ignore=shutil.ignore_patterns("manifest.json"))
        variation.on_disk(folder)
        return VariantSpec(model=str(folder))

    def _plan(self, name: str, variant: VariantSpec) -> Plan:
        suites, gates = (self.suite,), (self.gate,)
        return Plan(name=name, source="selftest", reference=self.reference, variant=variant, suites=suites, gates=gates)

    def _observe(self, plans: Mapping[str, Plan]) -> dict[str, Observed | HarnessError]:
        import_transformers()
        from harness.run import run_group

        found: dict[str, Observed | HarnessError] = {}
        for some in _parts(list(plans), self._count_at_once()):
            folders = [self.folder / name for name in some]
            found |= zip(some, run_group([plans[name] for name in some], folders, self.terminal), strict=True)
        return found

    def _count_at_once(self) -> int:
        """How many variants share a pass: as many as there is room for, going by the files of the reference."""
        from harness.models.sources import resolve

        stored = sum(path.stat().st_size for path in resolve(self.reference).folder.glob("*.safetensors"))
        return max(1, TOGETHER // max(1, 2 * stored))

    def _judge(self, observed: Observed) -> tuple[Verdict, ...]:
        if failures := observed.broken.get(MEASURES_RUN):
            raise MutantError(f"{observed.plan.name}: {failures[0]}")
        identical = observed.reference.same_as(observed.variant)
        verdicts = judge((self.gate,), observed.measurements, observed.skipped, identical, observed.slices)
        return verdicts + judge_own_rules(observed.broken)

    def _check_unchanged(self, found: Observed | HarnessError, verdicts: Sequence[Verdict]) -> None:
        if isinstance(found, HarnessError):
            raise found
        verdict, _ = overall(verdicts)
        if verdict == "pass":
            return
        reasons = "; ".join(each.because for each in verdicts if each.level == "block" and each.status != "pass")
        raise HarnessError(
            f"gate {self.gate.name}: the reference judged against itself is {verdict} with the suite {self.suite.name} "
            f"({reasons or 'no blocking rule'}); a gate that stops an unchanged model says nothing about changed ones"
        )

    def _outcome(
        self,
        variation: Variation,
        results: Mapping[str, Observed | HarnessError],
        verdicts: Mapping[str, Sequence[Verdict]],
    ) -> Outcome:
        found = results[variation.name]
        if isinstance(found, NotApplicable):
            return record_omission(variation, str(found))
        if isinstance(found, MutantError):
            raise found
        if isinstance(found, HarnessError):
            return record_refusal(variation, found)
        control = verdicts.get(variation.control or UNCHANGED)
        if control is None:
            raise MutantError(f"{variation.name}: {variation.control}, of which it is made, could not be measured")
        return assess(variation, verdicts[variation.name], control)


def _read(suite: str, gate: str, base: Path) -> tuple[SuiteSpec, GateSpec]:
    """Suite and gate. Raises PlanError with every mistake, rules on metrics that the suite lacks among them."""
    problems: list[Problem] = []
    for kind, name in (("suites", suite), ("gates", gate)):
        if unknown := explain_unknown_name("suites" if kind == "suites" else "gates", name, base):
            problems.append(Problem("selftest", None, kind.removesuffix("s"), *unknown))
    if problems:
        raise PlanError(problems)
    measured, required = read_suite(suite, base, problems), read_gate(gate, base, problems)
    measured, required = measured and _drop_artifact_probes(measured), required and _drop_artifact_rules(required)
    if measured and required:
        check_metrics(required, measured.metrics, measured.complete)
    if problems or measured is None or required is None:
        raise PlanError(problems)
    return measured.spec(), required.spec()


def _drop_artifact_probes(suite: Suite) -> Suite:
    """The suite without probes of the artifact: variations are changed in memory and never written."""
    kinds = {probe.kind for probe in suite.probes if probe.runs == "artifact"}
    measures = {index: measure for index, measure in suite.measures.items() if measure.table not in kinds}
    return replace(suite, measures=measures, probes=tuple(p for p in suite.probes if p.kind not in kinds))


def _drop_artifact_rules(gate: Gate) -> Gate:
    """The gate without its rules on saved files, if it has others."""
    others = {index: rule for index, rule in gate.rules.items() if not rule.metric.startswith(ARTIFACT_METRICS)}
    return replace(gate, rules=others or gate.rules)


def _choose(only: Sequence[str]) -> list[Variation]:
    """The variations to try: all, or those named with the good variants that they are made of."""
    known = library()
    if unknown := sorted(set(only) - known.keys()):
        raise HarnessError(f"no variation is called {unknown[0]!r}; known are {', '.join(known)}")
    wanted = set(only) | {known[name].control for name in only}
    return [each for each in known.values() if not only or each.name in wanted]


def _parts(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))
