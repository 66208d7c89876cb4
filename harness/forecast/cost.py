"""Estimates time and memory of a plan: from the times of an earlier run if there is one, else by the speed of this
machine.

The constants were fitted to runs of five models of 0.26 million to 1.1 billion parameters, in seconds of one processor
thread (tests/bench/forecasts.py shows forecasts beside runs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import MemoryShortageError
from harness.forecast.machine import measure_operations, multiplies_bfloat16, total_memory
from harness.forecast.model_size import BYTES, ModelSize, model_size
from harness.forecast.sizes import document_count
from harness.forecast.training import FORWARD_PASSES, training_memory, training_tokens
from harness.planning.specs import Plan, SuiteSpec
from harness.records import Run

OPERATIONS_ON_GPU = 5e13
FORWARD_EFFICIENCY = 0.7
"""Share of the speed of a matrix product that a forward pass reaches."""
DECODE_EFFICIENCY = 0.3
"""The same of the generation of texts, a token at a time."""
START_SECONDS = 8.0
"""Imports, and reading the files of suites and gates."""
PASS_SECONDS = 1.5
"""Of a shared pass whatever the model: hooks, tables, kernels."""
LOGIT_SECONDS = 2e-9
"""For each logit of the vocabulary and scored token: the statistics of both sides."""
WEIGHT_SECONDS = 1.2e-8
"""For each parameter: loading, hashing, rounding, checks of grids and formats, errors of weights."""
FITTING = 3
"""Passes over calibration documents of a step that calibrates, in passes of its blocks."""
ARTIFACT_SECONDS = 5.0
"""A fresh process that reads the artifact back."""
ARTIFACT_WEIGHT_SECONDS = 1.5e-8
"""For each parameter: writing, reading and hashing the artifact's files, and outputs of both models."""
ITEM_SECONDS = 0.02
"""Of a task item whatever the model: requests of both sides."""
ITEM_TOKENS = 200
"""Assumed tokens of one task item, prompts and answers together, if no run tells."""
COMPUTED_TOKENS = 140
"""Those of an item that a model computes: what its choices share only once."""
LOGITS = 2**23
"""Approximate number of logits that the shared pass holds at a time, per side."""
LOGIT_BUFFERS = 9
"""Buffers of that many float32 values: both sides, and what statistics make of them."""
ITEM_BUFFERS = 4
"""Buffers of the float32 logits of a batch of task items: the logits of all its tokens, and their logarithms."""
LIBRARIES = 650e6
"""Bytes of Python, torch and transformers themselves."""
WORKING_SHARE = 0.5
"""Of the larger model, what making, hashing and saving the variant takes for a while."""
OF_TOKENS = ("shared pass", "measure", "encode documents")
"""Stages of a run that take longer with more tokens of documents."""
OF_ANY_MODEL = ("start", "plan", "imports", "open inputs", "encode documents", "measure", "judge")
"""Stages of a run that take as long for any size of the model."""


@dataclass(frozen=True)
class Amount:
    """The work for each model: tokens of documents, items of tasks, timed calls."""

    tokens: int
    items: int
    calls: int
    written: int
    """Tokens that each side generates."""
    complete: bool
    """Whether every number is known; unknown ones count as 0."""
    noise: int = 0
    """Tokens that only the reference processes, for noise floors."""
    at_once: int = 0
    """Items of tasks in the largest batch."""


@dataclass(frozen=True)
class Cost:
    """Time in seconds and memory in bytes (None: not known), each with its basis.

    least: seconds if documents and items are drawn until the rules are decided, and that is at the first look.
    """

    seconds: float | None
    seconds_by: str
    memory: float | None
    memory_by: str
    least: float | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes: of the weights of each side, and of everything at its peak. said: what was counted."""

    reference: float
    variant: float
    total: float
    said: str


def amount(suites: tuple[SuiteSpec, ...], first: bool = False) -> Amount:
    """The amount of work; documents count as full up to their context.

    first: what is drawn until the rules are decided counts up to its first look only.
    """
    tokens = items = calls = written = noise = at_once = 0
    complete = True
    for suite in suites:
        count = document_count(suite.documents)
        if first and suite.documents and suite.documents.min:
            count = min(suite.documents.min, count or suite.documents.min)
        complete &= count is not None
        if suite.noise_floor is not None and suite.documents is not None:
            sampled = min(count or suite.noise_floor.documents, suite.noise_floor.documents)
            noise += _noise_tokens(len(suite.noise_floor.conditions), sampled, suite.documents.context)
        tokens += (count or 0) * (suite.documents.context if suite.documents else 0)
        for measure in suite.measures:
            work = measure.least_work(count) if first else measure.work(count)
            complete &= work.complete
            items, calls, written = items + work.items, calls + work.calls, written + work.generated
            at_once = max(at_once, min(work.at_once, work.items) if work.complete else work.at_once)
    return Amount(tokens, items, calls, written, complete, noise, at_once)


def _noise_tokens(conditions: int, documents: int, context: int) -> int:
    """Passes of the reference: once unchanged, and once under each condition."""
    return (conditions + 1) * documents * context


def cost(plan: Plan, run: Run | None) -> Cost:
    """Time and memory of one variant together with its reference."""
    reference = model_size(plan.reference.model, plan.reference.revision)
    seconds, seconds_by = _seconds(plan, run, reference, amount(plan.suites))
    least, _ = _seconds(plan, run, reference, amount(plan.suites, first=True))
    need = memory(plan)
    if isinstance(need, str):
        return Cost(seconds, seconds_by, None, need, least)
    return Cost(seconds, seconds_by, need.total, need.said, least)


def _seconds(plan: Plan, run: Run | None, reference: ModelSize | str, now: Amount) -> tuple[float | None, str]:
    if run is not None and (known := _scale_earlier_times(plan, run, now, reference)) is not None:
        return known, f"from the times of the run {run.name}, scaled by documents, items and parameters"
    if isinstance(reference, str):
        return None, reference
    speed, where = _find_speed(plan)
    forward = 2 * reference.parameters / (speed * FORWARD_EFFICIENCY)
    decode = 2 * reference.parameters / (speed * DECODE_EFFICIENCY)
    fitted = sum(step.calibrates for step in plan.variant.compress) if plan.calibration else 0
    calibration = plan.calibration.documents * plan.calibration.tokens if plan.calibration else 0
    saves = any(measure.kind == "artifact" for suite in plan.suites for measure in suite.measures)
    seconds = {
        "start": START_SECONDS + 2 * reference.parameters * WEIGHT_SECONDS,
        "calibration": fitted * calibration * FITTING * forward,
        "training": training_tokens(plan) * FORWARD_PASSES * forward,
        "pass": PASS_SECONDS * len(plan.suites)
        + now.tokens * (2 * forward + (reference.vocabulary or 0) * LOGIT_SECONDS),
        "noise floor": now.noise * forward,
        "items": now.items * (ITEM_SECONDS + 2 * COMPUTED_TOKENS * forward),
        "generations": 2 * now.written * decode,
        "artifact": (ARTIFACT_SECONDS + reference.parameters * ARTIFACT_WEIGHT_SECONDS) * saves,
    }
    unknown = "" if now.complete else "; documents and tasks of unknown size are not counted"
    return sum(seconds.values()), f"{where}{unknown}"


def _find_speed(plan: Plan) -> tuple[float, str]:
    """Operations per second of the reference's device and dtype, and how they are known."""
    if plan.reference.device != "cpu":
        return OPERATIONS_ON_GPU, "rule of thumb: a GPU at 50 TFLOP/s"
    measured, native = measure_operations(), multiplies_bfloat16()
    factor = 1.0 if plan.reference.dtype == "float32" else 2.0 if native else 0.25
    said = f"{measured / 1e9:.0f} GFLOP/s, measured on this machine in float32"
    if plan.reference.dtype != "float32":
        said += f", for {plan.reference.dtype} taken {'twice' if factor > 1 else 'a quarter'}"
    return measured * factor, said


def _scale_earlier_times(plan: Plan, run: Run, now: Amount, reference: ModelSize | str) -> float | None:
    """The stage times of an earlier run, each scaled by its amount of work; None if they are not comparable."""
    then = _count_work_of_run(run)
    larger = 1.0
    if not isinstance(reference, str) and run.reference.parameters:
        larger = reference.parameters / run.reference.parameters
    total = 0.0
    for stage, seconds in run.clock.seconds.items():
        before, after = {
            "items": (then.items, now.items),
            "timings": (then.calls, now.calls),
            "generations": (then.written, now.written),
            "noise floor": (then.noise, now.noise),
        }.get(stage, (then.tokens, now.tokens) if stage in OF_TOKENS else (1, 1))
        if before == 0 and after > 0:
            return None
        total += seconds * (after / before if before else 0.0) * (1.0 if stage in OF_ANY_MODEL else larger)
    stages = {"items": now.items, "timings": now.calls, "generations": now.written, "shared pass": now.tokens}
    stages["noise floor"] = now.noise
    return None if any(work and stage not in run.clock.seconds for stage, work in stages.items()) else total


def _count_work_of_run(run: Run) -> Amount:
    """The amount of work of a run: documents by the plan in its run.json, items by its measurements."""
    tokens = calls = written = noise = 0
    prompts = max((m.n for m in run.measurements if m.name == "generation.exact_match"), default=0)
    counted = max((m.clusters for m in run.measurements if m.name.startswith(("perplexity", "divergence"))), default=0)
    suites = run.asked.get("suites")
    for suite in suites if isinstance(suites, list) else []:
        if spec := suite.get("documents"):
            # One that stopped when its rules were decided saw fewer than its max.
            most = counted if spec.get("min") else spec.get("max") or counted
            documents, context = int(most), int(spec.get("context") or 512)
            tokens += documents * context
            if floor := suite.get("noise_floor"):
                sampled = min(documents, int(floor.get("documents") or documents))
                noise += _noise_tokens(len(floor.get("conditions") or ()), sampled, context)
        calls += sum(int(measure.get("repeats") or 0) for measure in suite.get("measures", []))
        asked = (measure for measure in suite.get("measures", []) if measure.get("measure") == "generation")
        written += sum(int(measure["prompt_tokens"]) + int(measure["new_tokens"]) for measure in asked) * prompts
    items: dict[str, int] = {}
    for found in run.measurements:
        if found.name.startswith("tasks."):
            task = found.name.split(".")[1]
            items[task] = max(items.get(task, 0), found.n)
    return Amount(tokens, sum(items.values()), calls, written, True, noise)


def memory(plan: Plan) -> Memory | str:
    """What a plan needs, or why that is not known."""
    reference = model_size(plan.reference.model, plan.reference.revision)
    same = plan.variant.model in ("reference", plan.reference.model)
    variant = reference if same else model_size(plan.variant.model, plan.variant.revision)
    if isinstance(reference, str):
        return reference
    if isinstance(variant, str):
        return variant
    dtype = plan.reference.dtype
    own = plan.variant.dtype or dtype
    dequantized = plan.variant.is_gguf and plan.variant.engine.logits_dtype is None
    floats = variant is reference or bool(plan.variant.compress) or dequantized
    second = variant.parameters * BYTES[own] if floats else variant.stored_bytes
    kept = f"in {own}" if floats else "as stored in its files"
    first = reference.parameters * BYTES[dtype]
    working = WORKING_SHARE * max(first, second) if plan.variant.compress else 0.0
    now, vocabulary = amount(plan.suites), reference.vocabulary
    in_pass = LOGIT_BUFFERS * 4 * min(LOGITS, max(1, now.tokens) * (vocabulary or LOGITS))
    logits = max(in_pass, ITEM_BUFFERS * 4 * now.at_once * ITEM_TOKENS * (vocabulary or 0))
    # The base of a training is the variant, which is counted already.
    beside = (parts | {"base": 0} for _, parts in training_memory(plan, reference))
    trained = max((sum(parts.values()) for parts in beside), default=0)
    said = f"reference in {dtype}, variant {kept}, working memory {(working + logits) / 1e9:.1f} GB, libraries 0.65 GB"
    if trained:
        # A training and the shared pass come one after the other.
        working, said = max(working, trained), f"{said}, training {trained / 1e9:.2g} GB before that"
    return Memory(first, second, first + second + working + logits + LIBRARIES, said)


def check_fits(plans: Sequence[Plan]) -> None:
    """Raise HarnessError if the models of plans that share a pass are larger than the memory of this machine."""
    total, needs = total_memory(), [memory(plan) for plan in plans if plan.reference.device == "cpu"]
    known = [need for need in needs if isinstance(need, Memory)]
    if total is None or not known:
        return
    models = known[0].reference + sum(need.variant for need in known)
    if models > total:
        raise MemoryShortageError(
            f"{', '.join(plan.name for plan in plans)}: the reference ({known[0].reference / 1e9:.1f} GB) and "
            f"{len(known)} variant{'s' * (len(known) > 1)} take {models / 1e9:.1f} GB, expected at most the "
            f"{total / 1e9:.1f} GB of memory of this machine; check fewer variants at a time, load them in 16 bits "
            "(dtype: bfloat16), or use a larger machine"
        )
