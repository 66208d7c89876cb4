"""Plan: reads a variant file with its suites and gates, and checks everything before a model is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast, get_args

from harness.backends import Backend
from harness.errors import PlanError, Problem
from harness.planning.artifact import check_artifact
from harness.planning.checking import Checker
from harness.planning.checkpoints import DISTRIBUTION
from harness.planning.composition import check_composition
from harness.planning.data.fitted_data import read_fitted_data
from harness.planning.data.own_data import check_taken, read_own_data
from harness.planning.dtypes import list_auto, note_dtypes, settle_dtypes
from harness.planning.files import VariantFile
from harness.planning.gate_file import Gate, check_extending, check_metrics, check_obstacles, read_gate
from harness.planning.left_out import LeftOut, note_left_out
from harness.planning.locating import explain_unknown_name, is_slug
from harness.planning.matrix import KEY, Expansion, expand, merge_problems
from harness.planning.model_entry import read_reference, read_steps, read_variant
from harness.planning.noise_floor import check_floors
from harness.planning.other_world import note_other_world
from harness.planning.outputs import read_outputs
from harness.planning.run_entry import read_run
from harness.planning.specs import GateSpec, Plan, Select, SuiteSpec
from harness.planning.suite_file import TRAINING, Suite, read_suite
from harness.planning.target import read_target
from harness.records import Note, Plugin
from harness.system.yaml_file import read_yaml
from harness.system.yaml_values import KeyPath, describe
from harness.writers import Writer


def make_plan(path: Path) -> Plan:
    """Read the plan of a variant file with one variant.

    Raises PlanError with every mistake of the file, its suites and its gates.
    """
    plans = make_plans(path)
    if len(plans) > 1:
        raise PlanError([Problem(str(path), None, KEY, f"{len(plans)} variants", "a file with one variant")])
    return plans[0]


def make_plans(path: Path) -> list[Plan]:
    """Read the plans of a variant file: one, or those of every combination of its matrix.

    Raises PlanError with every mistake of the file, its suites and its gates.
    """
    problems: list[Problem] = []
    source = read_yaml(path, problems)
    if source is None:
        raise PlanError(problems)
    expansions = expand(source, Checker(source, path.parent, problems))
    if not expansions:
        raise PlanError(problems)
    plans, mistakes = [], []
    for each in expansions:
        found = list(problems)
        plans.append(_read_plan(each, path.parent, found))
        mistakes.append((each.choice, found))
    if any(found for _, found in mistakes):
        raise PlanError(merge_problems(mistakes))
    return [plan for plan in plans if plan is not None]


def make_all_plans(paths: Iterable[Path]) -> Sequence[Plan]:
    """The plans of several variant files. Raises PlanError with every mistake of every file, each once."""
    plans: list[Plan] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            plans += make_plans(path)
        except PlanError as error:
            problems += error.problems
    if problems:
        raise PlanError(list(dict.fromkeys(problems)))
    return check_together(plans)


def _read_plan(expansion: Expansion, folder: Path, problems: list[Problem]) -> Plan | None:
    """The plan of one variant; None, and problems, if there are mistakes."""
    source = expansion.source
    check = Checker(source, folder, problems)
    content = check.mapping(source.data, (), tuple(VariantFile.model_fields))
    name = _name(check, content.get("name"))
    reference = read_reference(check, content.get("reference"))
    steps = read_steps(check, content.get("variant"))
    variant = read_variant(check, content.get("variant"), steps.values(), reference)
    auto_dtype = list_auto(reference, variant)
    reference, variant = settle_dtypes(check, reference, variant)
    target = read_target(check, content.get("target"))
    own = read_own_data(check, content)
    also = (TRAINING,) if any(step.trains for step in steps.values()) else ()
    read = [read_suite(each, folder, problems, own, also) for each in _names(check, "suites", content, folder)]
    suites = [suite and suite.with_target(target) for suite in read]
    gates = [read_gate(each, folder, problems) for each in _names(check, "gates", content, folder)]
    weak_reference = _reason(check, content.get("weak_reference", ""))
    outputs = read_outputs(check, content.get("outputs"))
    select = _select(check, content, bool(expansion.choice))
    stop_at_failure = _flag(check, content, "stop_at_failure")
    run = read_run(check, content.get("run"), reference)
    _check_backends(check, steps)
    check_composition(check, steps)
    fitted_to = read_fitted_data(check, content, steps, suites)
    check_taken(check, content, suites)
    left_out = LeftOut.of_suites(suite.spec() for suite in suites if suite and suite.measures)
    _check_rules(check, gates, suites, _length(content.get("suites")), left_out)
    check_artifact(check, content.get("variant"), variant, suites, gates)
    if problems or reference is None or variant is None:
        return None
    return Plan(
        name=name,
        choice=dict(expansion.choice),
        source=source.file,
        reference=reference,
        variant=variant,
        auto_dtype=auto_dtype,
        target=target,
        calibration=fitted_to.calibration,
        training=fitted_to.training,
        suites=tuple(suite.spec() for suite in suites if suite),
        gates=tuple(left_out.mark(gate.spec()) for gate in gates if gate),
        weak_reference=weak_reference,
        select=select,
        stop_at_failure=stop_at_failure,
        outputs=outputs,
        run=run,
    )


def notes_on_plan(plan: Plan) -> tuple[Note, ...]:
    """What a reader of the verdict must know that the plan alone tells: rules that are not applied, suites that are
    about another model, and sides that are computed in different dtypes."""
    left_out = note_left_out(plan.gates, LeftOut.of_suites(plan.suites).suites)
    return (*left_out, *note_other_world(plan), *note_dtypes(plan))


def names_of(path: Path) -> set[str]:
    """The names of the variants in a file that may be full of mistakes, as far as they can be known."""
    source = read_yaml(path, [])
    expansions = expand(source, Checker(source, path.parent, [])) if source is not None else []
    contents = [each.source.data for each in expansions if isinstance(each.source.data, Mapping)]
    names = [content.get("name") for content in contents]
    return {name for name in names if isinstance(name, str) and is_slug(name)}


def outputs_of(path: Path) -> tuple[Writer, ...]:
    """The writers that a file asks for which may be full of mistakes, as far as they can be known."""
    source = read_yaml(path, [])
    content = source.data if source is not None and isinstance(source.data, Mapping) else {}
    return read_outputs(Checker(source, path.parent, []), content.get("outputs")) if source is not None else ()


def named_in(path: Path) -> tuple[list[GateSpec], list[SuiteSpec]]:
    """The gates and suites that a file with mistakes names, without those that have mistakes themselves."""
    source = read_yaml(path, [])
    content = source.data if source is not None and isinstance(source.data, Mapping) else {}
    gates, suites = [], []
    for name in _texts_in(content.get("gates")):
        with suppress(PlanError):
            gates.append(load_gate(name, path.parent))
    for name in _texts_in(content.get("suites")):
        with suppress(PlanError):
            suites.append(load_suite(name, path.parent))
    return gates, suites


def _texts_in(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, tuple) else []


def load_gate(name_or_path: str, base: Path) -> GateSpec:
    """Read one gate: a bundled name, or a path under ``base`` (with a slash, or ending in .yaml).

    Raises PlanError with every mistake of the file.
    """
    problems: list[Problem] = []
    gate = None
    if unknown := explain_unknown_name("gates", name_or_path, base):
        problems.append(Problem("gate", None, "", *unknown))
    else:
        gate = read_gate(name_or_path, base, problems)
    if problems or gate is None:
        raise PlanError(problems)
    return gate.spec()


def load_suite(name_or_path: str, base: Path) -> SuiteSpec:
    """Read one suite: a bundled name, or a path under ``base`` (with a slash, or ending in .yaml).

    Raises PlanError with every mistake of the file.
    """
    problems: list[Problem] = []
    suite = None
    if unknown := explain_unknown_name("suites", name_or_path, base):
        problems.append(Problem("suite", None, "", *unknown))
    else:
        suite = read_suite(name_or_path, base, problems)
    if problems or suite is None:
        raise PlanError(problems)
    return suite.spec()


def check_together(plans: Sequence[Plan]) -> Sequence[Plan]:
    """The plans, if they can share one output folder. Raises PlanError if two have the same name."""
    first: dict[str, Plan] = {}
    problems = []
    for plan in plans:
        other = first.setdefault(plan.name.casefold(), plan)
        if other is not plan:
            found = f"{plan.name!r}, which is also the name of {other.source}"
            problems.append(Problem(plan.source, None, "name", found, "a different name for every variant"))
    if problems:
        raise PlanError(problems)
    return plans


def resolve_plan(plan: Plan) -> dict[str, Any]:
    """The plan as plain data for run.json, as it was asked for: every default written out, every plugin with its name.

    The dtypes that were taken for ``auto`` stand with the models that were found.
    """
    record = plan.model_dump(mode="json", exclude={"auto_dtype", "run"})
    for side in plan.auto_dtype:
        record[side]["dtype"] = "auto"
    engine = plan.variant.engine
    if not plan.choice:
        del record["choice"]
    if plan.select == "all":
        del record["select"]
    record["variant"]["engine"] = _describe_plugin("engine", engine) if engine.settings() else engine.kind
    record["variant"]["compress"] = [_describe_plugin("backend", step) for step in plan.variant.compress]
    for suite, out in zip(plan.suites, record["suites"], strict=True):
        out["measures"] = [_describe_plugin("measure", measure) for measure in suite.measures]
        out["probes"] = [_describe_plugin("probe", probe) for probe in suite.probes]
    record["gates"] = [gate.resolve() for gate in plan.gates]
    record["outputs"] = [_describe_plugin("writer", writer) for writer in plan.outputs]
    return record


def _describe_plugin(role: str, plugin: Plugin) -> dict[str, Any]:
    return {role: plugin.kind, **plugin.settings()}


def _name(check: Checker, value: Any) -> str:
    if isinstance(value, str) and is_slug(value):
        return value
    expected = "a name of at most 100 letters, digits, '.', '-' and '_' that can be the name of a folder"
    check.problem(("name",), describe(value), expected)
    return ""


def _reason(check: Checker, value: Any) -> str:
    """Why a weak reference is meant; empty if the file does not say."""
    if isinstance(value, str) and (value.strip() or value == ""):
        return value.strip()
    check.problem(("weak_reference",), describe(value), "the reason, as text", 'for example "random weights, a test"')
    return ""


def _flag(check: Checker, content: Mapping[str, Any], key: str) -> bool:
    value = content.get(key, False)
    if isinstance(value, bool):
        return value
    check.problem((key,), describe(value), "true or false")
    return False


def _select(check: Checker, content: Mapping[str, Any], several: bool) -> Select:
    value = content.get("select", "all")
    if value in get_args(Select) and (several or "select" not in content):
        return cast("Select", value)
    if value in get_args(Select):
        check.problem(("select",), f"{value} without a matrix", "a matrix, whose variants it selects from")
    else:
        check.problem(("select",), describe(value), f"one of {', '.join(get_args(Select))}")
    return "all"


def _names(check: Checker, kind: str, content: Mapping[str, Any], folder: Path) -> list[str]:
    """The suites or gates that the file names, without those that do not exist."""
    names: dict[str, str] = {}
    for index, value in enumerate(check.entries(content.get(kind), (kind,), f"names of {kind}")):
        path: KeyPath = (kind, index)
        if not isinstance(value, str):
            check.problem(path, describe(value), f"the name of one of the {kind}, or a path")
            continue
        if check.full:
            break
        unknown = explain_unknown_name("suites" if kind == "suites" else "gates", value, folder)
        if unknown is not None:
            check.problem(path, *unknown)
            continue
        other = names.setdefault(Path(value).stem.casefold(), value)
        if other is not value:
            check.problem(path, f"{value!r}, which has the same name as {other!r}", f"{kind} with different names")
    return list(names.values())


def _length(value: Any) -> int:
    return len(value) if isinstance(value, tuple) else -1


def _check_backends(check: Checker, steps: Mapping[int, Backend]) -> None:
    for index, step in steps.items():
        path: KeyPath = ("variant", "compress", index)
        missing = [library for library in step.libraries if not is_installed(library)]
        if missing:
            what = f'"{DISTRIBUTION}[{step.extra}]"' if step.extra else " ".join(missing)
            found = f"{step.kind}, which needs {', '.join(missing)} (not installed)"
            check.problem(path, found, "a backend whose libraries are installed", f"pip install {what}")
        elif lack := step.lacks():
            check.problem(path, f"{step.kind}: {lack}", "a backend that can run on this machine")


def is_installed(library: str) -> bool:
    """Whether a module can be imported, by its full name; of a dotted one, the packages around it are imported."""
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # A package around it is missing.
        return False


def _check_rules(
    check: Checker,
    gates: Sequence[Gate | None],
    suites: Sequence[Suite | None],
    suites_named: int,
    left_out: LeftOut,
) -> None:
    metrics = [metric for suite in suites if suite for metric in suite.metrics]
    all_known = len(suites) == suites_named and all(suite and suite.complete for suite in suites)
    for gate in gates:
        if gate:
            check_metrics(gate, metrics, all_known, left_out)
            check_obstacles(gate, [measure for suite in suites if suite for measure in suite.measures.values()])
            check_floors(gate, [suite for suite in suites if suite])
    if all_known and not any(problem.key.startswith("documents") for problem in check.problems):
        growing = [name for suite in suites if suite for name in suite.sequential_metrics]
        check_extending([gate for gate in gates if gate], growing, metrics)
    if gates and all(gate and gate.complete and gate.only_warns(left_out) for gate in gates):
        check.problem(("gates",), "only rules of level warn", "at least one rule of level block")
