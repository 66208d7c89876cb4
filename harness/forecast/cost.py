"""Estimates time and memory of a plan: from the times of an earlier run if there is one, else by rule of thumb."""

from __future__ import annotations

import os
from dataclasses import dataclass

from harness.forecast.model_size import ModelSize, model_size
from harness.forecast.sizes import document_count
from harness.planning.specs import Plan, SuiteSpec
from harness.records import Run

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
OPERATIONS_PER_CORE = 1e10
OPERATIONS_ON_GPU = 5e13
ITEM_TOKENS = 200
"""Assumed tokens of one task item, prompts and answers together, if no run tells."""
LOGITS = 2**23
"""Approximate number of logits that the shared pass holds at a time, per side."""


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


@dataclass(frozen=True)
class Cost:
    """Time in seconds and memory in bytes (None: not known), each with its basis."""

    seconds: float | None
    seconds_by: str
    memory: float | None
    memory_by: str


def amount(suites: tuple[SuiteSpec, ...]) -> Amount:
    """The amount of work; documents count as full up to their context."""
    tokens = items = calls = written = noise = 0
    complete = True
    for suite in suites:
        count = document_count(suite.documents)
        complete &= count is not None
        if suite.noise_floor is not None and suite.documents is not None:
            sampled = min(count or suite.noise_floor.documents, suite.noise_floor.documents)
            noise += _noise_tokens(len(suite.noise_floor.conditions), sampled, suite.documents.context)
        tokens += (count or 0) * (suite.documents.context if suite.documents else 0)
        for measure in suite.measures:
            work = measure.work(count)
            complete &= work.complete
            items, calls, written = items + work.items, calls + work.calls, written + work.generated
    return Amount(tokens, items, calls, written, complete, noise)


def _noise_tokens(conditions: int, documents: int, context: int) -> int:
    """Passes of the reference: once unchanged, and once under each condition."""
    return (conditions + 1) * documents * context


def cost(plan: Plan, run: Run | None) -> Cost:
    """Time and memory of one variant together with its reference."""
    reference = model_size(plan.reference.model, plan.reference.revision)
    same = plan.variant.model in ("reference", plan.reference.model)
    variant = reference if same else model_size(plan.variant.model, plan.variant.revision)
    seconds, seconds_by = _seconds(plan, run, reference)
    memory, memory_by = _memory(plan, reference, variant)
    return Cost(seconds, seconds_by, memory, memory_by)


def _seconds(plan: Plan, run: Run | None, reference: ModelSize | str) -> tuple[float | None, str]:
    now = amount(plan.suites)
    if run is not None and (known := _scale_earlier_times(plan, run, now, reference)) is not None:
        return known, f"from the times of the run {run.name}, scaled by documents, items and parameters"
    if isinstance(reference, str):
        return None, reference
    on_cpu = plan.reference.device == "cpu"
    speed = OPERATIONS_PER_CORE * (os.cpu_count() or 1) if on_cpu else OPERATIONS_ON_GPU
    # Two operations for each parameter and token, on both sides.
    operations = 2 * 2 * reference.parameters * (now.tokens + ITEM_TOKENS * now.items + now.written)
    operations += 2 * reference.parameters * now.noise
    where = f"{os.cpu_count() or 1} cores at 10 GFLOP/s each" if on_cpu else "a GPU at 50 TFLOP/s"
    unknown = "" if now.complete else "; documents and tasks of unknown size are not counted"
    said = f"rule of thumb: 4 FLOP per parameter and token (2 per side), {where}{unknown}"
    return operations / speed, said


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
        }.get(stage, (then.tokens, now.tokens) if stage in ("shared pass", "measure") else (1, 1))
        if before == 0 and after > 0:
            return None
        total += seconds * (after / before if before else 0.0) * (1.0 if stage == "measure" else larger)
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


def _memory(plan: Plan, reference: ModelSize | str, variant: ModelSize | str) -> tuple[float | None, str]:
    if isinstance(reference, str):
        return None, reference
    if isinstance(variant, str):
        return None, variant
    dtype = plan.reference.dtype
    own = plan.variant.dtype or dtype
    dequantized = plan.variant.is_gguf and plan.variant.engine.logits_dtype is None
    floats = variant is reference or bool(plan.variant.compress) or dequantized
    second = variant.parameters * BYTES[own] if floats else variant.stored_bytes
    kept = f"in {own}" if floats else "as stored in its files"
    said = f"reference in {dtype}, variant {kept}, {LOGITS / 1e6:.0f} million logits per side; libraries not included"
    return reference.parameters * BYTES[dtype] + second + 2 * 4 * LOGITS, said
