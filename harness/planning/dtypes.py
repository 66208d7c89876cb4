"""What ``dtype: auto`` becomes, and whether the dtypes of both sides fit each other, the engine and the attention."""

from __future__ import annotations

from harness.models.headers import find_dtype
from harness.planning.checking import Checker
from harness.planning.specs import Plan, VariantSpec
from harness.records import ModelSpec, Note
from harness.records.plan import Side


def settle_dtypes(
    check: Checker, reference: ModelSpec | None, variant: VariantSpec | None
) -> tuple[ModelSpec | None, VariantSpec | None]:
    """Both sides with the dtypes in which they are computed; ``auto`` stays where the files are not on this machine
    yet, and is settled when they are loaded. Notes problems.
    """
    if reference is not None and reference.dtype == "auto":
        # An engine that keeps the weights to itself has logits of one dtype, whatever is asked.
        dtype = (variant and variant.engine.logits_dtype) or find_dtype(reference)
        reference = reference.model_copy(update={"dtype": dtype or "auto"})
    if variant is not None and variant.dtype == "auto":
        variant = variant.model_copy(update={"dtype": _find_own(variant)})
    _check_flash_attention(check, reference, variant)
    _check_engine(check, reference, variant)
    return reference, variant


def list_auto(reference: ModelSpec | None, variant: VariantSpec | None) -> tuple[Side, ...]:
    """The sides that ask for ``auto``."""
    sides: dict[Side, ModelSpec | VariantSpec | None] = {"reference": reference, "variant": variant}
    return tuple(side for side, spec in sides.items() if spec is not None and spec.dtype == "auto")


def note_dtypes(plan: Plan) -> tuple[Note, ...]:
    """A warning where the two sides are computed in different dtypes."""
    ours, theirs = plan.reference.dtype, plan.variant.dtype
    if theirs is None or ours == theirs or plan.variant.engine.logits_dtype is not None:
        return ()
    text = (
        f"the reference is computed in {ours}, the variant in {theirs}: precision counts as a change of the variant; "
        "leave out variant.dtype to compute both in that of the reference"
    )
    return (Note(topic="dtype", text=text, level="warn"),)


def _find_own(variant: VariantSpec) -> str | None:
    """The dtype of the variant's own checkpoint; None for one of the reference, and for floats that a GGUF file has
    none of."""
    if variant.checkpoint_kind != "folder":
        return None
    return find_dtype(ModelSpec(model=variant.model, revision=variant.revision)) or "auto"


def _check_flash_attention(check: Checker, reference: ModelSpec | None, variant: VariantSpec | None) -> None:
    if reference is None or not reference.attention.startswith("flash"):
        return
    if reference.dtype == "float32" or reference.device == "cpu":
        found = f"{reference.attention} with {reference.dtype} on {reference.device}"
        expected = "float16 or bfloat16 on a GPU, or attention: sdpa"
        check.problem(("reference", "attention"), found, expected)
    if variant is not None and variant.dtype == "float32":
        expected = f"float16 or bfloat16, because the reference's attention is {reference.attention}"
        check.problem(("variant", "dtype"), "float32", expected)


def _check_engine(check: Checker, reference: ModelSpec | None, variant: VariantSpec | None) -> None:
    logits = variant.engine.logits_dtype if variant else None
    if variant is None or reference is None or logits is None or reference.dtype == logits:
        return
    found = f"{reference.dtype} with engine {variant.engine.kind}, whose logits are {logits}"
    check.problem(("reference", "dtype"), found, f"{logits}, or precision would count as damage")
