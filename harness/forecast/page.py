"""Renders the output of ``harness plan``: the resolved plan, the power of its rules, and its cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from harness.data.task_files import SUFFIXES
from harness.forecast.cost import Cost
from harness.forecast.model_size import ModelSize, model_size
from harness.forecast.needs import Need
from harness.forecast.sizes import document_count
from harness.forecast.training import training_memory
from harness.measures import Measure
from harness.planning.sampling.looks import DEFAULT, names_by_document, select_waiting_rules
from harness.planning.specs import GateSpec, Plan, SuiteSpec
from harness.records import HubData, Plugin, Run
from harness.records.plan import Side
from harness.report import display
from harness.rules import Rule
from harness.statistics import planned_looks
from harness.terminal import defuse

_COLOURS = {"decides": "green", "weak": "yellow", "never": "red", "free": "bright_black", "unknown": "cyan"}
_WORDS = {
    "decides": "powered",
    "weak": "underpowered",
    "never": "cannot pass",
    "free": "no sampling",
    "unknown": "unknown",
}


def print_plan(console: Console, plan: Plan, needs: Sequence[Need], cost: Cost, run: Run | None) -> None:
    """The whole page."""
    _head(console, f"plan {plan.name}", f"({plan.source})")
    for lines in (_models(plan), _steps(plan), _suites(plan.suites, plan.gates)):
        for line in lines:
            _line(console, line)
    source = f"the run {run.name}" if run else "declared assumptions, as there is no earlier run"
    _head(console, "rules", f"power at the planned sample sizes n; variances from {source}")
    for need in needs:
        _need(console, need)
    _head(console, "cost", "")
    _line(console, f"  time    {_range(cost)} ({cost.seconds_by})")
    _line(console, f"  memory  {_bytes(cost.memory)} ({cost.memory_by})")
    for line in _trainings(plan):
        _line(console, line)
    stuck = [need for need in needs if need.outlook in ("weak", "never")]
    if stuck:
        _head(console, "underpowered", f"{len(stuck)} of {len(needs)} comparisons have less than 80 % power")
        for need in stuck:
            _line(console, f"  {need.spec.where}: {need.rule.kind} on {need.metric}: {need.said}")


def _models(plan: Plan) -> Iterator[str]:
    reference, variant = plan.reference, plan.variant
    place = f"{_dtype(plan, 'reference')} on {reference.device}"
    yield f"  reference    {reference.model}, {place}: {_size(plan, reference.model)}"
    same = variant.model in ("reference", reference.model)
    what = "the reference" if same else f"{variant.model}: {_size(plan, variant.model)}"
    what += " with an adapter" if variant.adapter else ""
    steps = f"{len(variant.compress)} step{'s' * (len(variant.compress) != 1)}"
    computed = _dtype(plan, "variant") if variant.engine.logits_dtype is None else variant.engine.kind
    yield f"  variant      {what}, {computed}, {steps}"
    if variant.adapter:
        place = "merged before the steps" if variant.merge else "attached, not merged"
        yield f"  adapter      {variant.adapter}, {place}"
    yield f"  artifact     {_artifact(plan)}"
    if plan.target:
        yield f"  target       {plan.target}"
    yield f"  outputs      {', '.join(['run.json', *(writer.file_name for writer in plan.outputs)])}"


def _dtype(plan: Plan, side: Side) -> str:
    """The dtype of a side, and whether it is the one that ``auto`` found."""
    dtype = plan.reference.dtype if side == "reference" else plan.variant.dtype or plan.reference.dtype
    return f"{dtype} (auto)" if side in plan.auto_dtype and dtype != "auto" else dtype


def _artifact(plan: Plan) -> str:
    """How the artifact is obtained and checked."""
    asked = [suite.name for suite in plan.suites if any(probe.runs == "artifact" for probe in suite.probes)]
    if not asked:
        return "not checked: no suite has the measure artifact"
    if not plan.variant.made_here:
        return "the files that the variant is loaded from; nothing is saved"
    if plan.variant.artifact == "none":
        return "none: the variant is judged in memory only"
    return "saved, reloaded in a fresh process and compared with the model in memory"


def _steps(plan: Plan) -> Iterator[str]:
    for index, step in enumerate(plan.variant.compress, 1):
        yield f"  step {index}       {_describe_plugin(step)}"
    if plan.calibration is None:
        yield "  calibration  none"
    else:
        data = plan.calibration
        yield f"  calibration  {_data(data.data)}: {data.documents} documents of up to {data.tokens} tokens"
    if plan.training is not None:
        texts = plan.training
        lasts = f"{texts.steps} steps" if texts.steps else f"{texts.epochs} epochs"
        yield (
            f"  training     {_data(texts.data)}: {texts.documents} documents of up to {texts.tokens} tokens, {lasts}, "
            f"{texts.held_out} further documents held out"
        )


def _trainings(plan: Plan) -> Iterator[str]:
    """Memory of every training by part, beside the reference."""
    size = model_size(plan.reference.model, plan.reference.revision)
    for kind, parts in training_memory(plan, size) if isinstance(size, ModelSize) else ():
        yield f"  {kind:<7} {', '.join(f'{part} {_bytes(count)}' for part, count in parts.items())}"


def _suites(suites: Sequence[SuiteSpec], gates: Sequence[GateSpec]) -> Iterator[str]:
    for suite in suites:
        spec = suite.documents
        if spec is not None:
            count = document_count(spec)
            unit = "windows" if spec.packed else "documents"
            known = f"{count} {unit}" if count is not None else f"an unknown number of {unit}"
            yield f"  suite        {suite.name}: {known} of {_data(spec.data)}, up to {spec.context} tokens each"
        else:
            yield f"  suite        {suite.name}: no documents"
        yield from _looks(suite, gates)
        yield f"    measures   {', '.join(measure.kind for measure in suite.measures)}"
        if suite.noise_floor is not None:
            floor = suite.noise_floor
            yield f"    noise      floor on {floor.documents} documents under {', '.join(floor.conditions)}"
        for measure in suite.measures:
            if tasks := measure.task_sizes():
                sizes = (f"{task.name} {'?' if task.items is None else task.items}" for task in tasks)
                yield f"    items      {'at most ' * bool(measure.item_sampling())}{', '.join(sizes)}"
            yield from _item_looks(measure, gates)
            for place in measure.code_folders():
                named = f"{place} names" if place.endswith(SUFFIXES) else f"the files in {place} name"
                yield f"    executes   Python code that {named}, with your rights"


def _looks(suite: SuiteSpec, gates: Sequence[GateSpec]) -> Iterator[str]:
    """The interim looks at the documents of a suite: when, with which intervals, and for which rules."""
    spec = suite.documents
    if spec is not None and spec.min is not None:
        most = document_count(spec) or spec.max or spec.min
        yield from _describe_looks((spec.min, most), f"documents in random order (seed {spec.seed})", gates)
        yield _describe_stop(select_waiting_rules(gates, names_by_document(suite)), "documents")


def _item_looks(measure: Measure, gates: Sequence[GateSpec]) -> Iterator[str]:
    """The same of the items of every task of a measure."""
    spec = measure.item_sampling()
    if spec is not None:
        what = f"items of each task in random order (seed {spec.seed})"
        yield from _describe_looks((spec.min, spec.max), what, gates)
        names = [f"tasks.{task.name}.*" for task in measure.task_sizes()]
        yield _describe_stop(select_waiting_rules(gates, names), "items")


def _describe_looks(between: tuple[int, int], what: str, gates: Sequence[GateSpec]) -> Iterator[str]:
    least, most = between
    *first, last = planned_looks(min(least, most), most)
    after = f"{', '.join(map(str, first))} and {last}" if first else str(last)
    how = next((gate.sequential for gate in gates if gate.sequential), DEFAULT).replace("_", "-")
    yield f"    interim    looks after {after} {what}, {how} intervals"


def _describe_stop(waiting: Sequence[GateSpec], units: str) -> str:
    metrics = ", ".join(dict.fromkeys(spec.rule.metric for gate in waiting for spec in gate.rules))
    of_task = " on its task" * (units == "items")
    if not metrics:
        return f"    stops      at max: no rule extends the sample{of_task}"
    return f"    stops      when {metrics} are decided{of_task}"


def _need(console: Console, need: Need) -> None:
    level = "" if need.rule.level == "block" else " (advisory)"
    line = Text.assemble(
        (f"  {_WORDS[need.outlook]:<13}", _COLOURS[need.outlook]),
        (f"{need.gate}: {need.rule.kind} ", ""),
        (defuse(need.metric), "bold"),
        f"{_limit(need)}{level}  {defuse(need.said)}",
    )
    if need.basis:
        line.append(f"; {defuse(need.basis)}", style="bright_black")
    console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _limit(need: Need) -> str:
    own = {name: value for name, value in need.rule.settings().items() if name not in Rule.model_fields}
    limits = [f"{name} {value:g}" for name, value in own.items() if isinstance(value, float)]
    return f" {', '.join(limits)}" if limits else ""


def _describe_plugin(plugin: Plugin) -> str:
    settings = {name: value for name, value in plugin.settings().items() if value not in (None, [], {})}
    return plugin.kind + "".join(f", {name} {value}" for name, value in settings.items())


def _size(plan: Plan, model: str) -> str:
    size = model_size(model, plan.reference.revision if model == plan.reference.model else plan.variant.revision)
    if not isinstance(size, ModelSize):
        return size
    return f"{size.parameters / 1e6:.4g} million parameters, {_bytes(size.stored_bytes)} on disk"


def _data(data: str | HubData) -> str:
    return f"{data.hub} ({data.split})" if isinstance(data, HubData) else data


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    return "about a second" if seconds < 1.5 else f"about {display.format_duration(seconds)}"


def _range(cost: Cost) -> str:
    """The time; where documents or items are drawn until the rules are decided, from the first look to the last."""
    most = _seconds(cost.seconds)
    least = most if cost.least is None else _seconds(cost.least)
    return most if least == most else f"{least}, if every rule is decided at its first look, to {most}"


def _bytes(size: float | None) -> str:
    if size is None:
        return "not known"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _head(console: Console, title: str, text: str) -> None:
    line = Text.assemble((title, "bold"), f"  {defuse(text, 2000)}" if text else "")
    console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _line(console: Console, text: str) -> None:
    console.print(Text(defuse(text, 2000)), soft_wrap=True, highlight=False, markup=False, emoji=False)
