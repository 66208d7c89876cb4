"""The probe ``weights``: stored bytes and format of every module, KV cache size, peak memory, weight errors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from harness.probes import Context, Probe
from harness.records import FLOATS, ModuleFormat, NumberFormat

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from harness.models.loaded import LoadedModel
    from harness.modules.layer_pairs import LayerPairs
    from harness.modules.weight_errors import ModuleWeightError

UNIT = "weights"
_EXPERT = re.compile(r"(?P<module>(.+\.)?experts)\.(?P<number>\d+)\.(?P<matrix>.+)")


class Weights(Probe):
    """Records the bytes and format of every module, and the memory of a token in the cache and of a forward pass.

    The KV cache is measured: its tensors after two tokens less its tensors after one. If a simulated format stores it
    as floats, the values are counted with the bits of that format, as in a long text. Peak memory is measured on CUDA
    devices only, and not for simulated formats (whose floats would not be deployed): the weights of one side plus what
    one forward pass adds. relative_error of a linear layer of the variant is that of the weight that it computes with,
    over the compared share of its inputs; error_note says why it is missing, or what else the layer does. zeros: share
    of zeros in a linear layer's weight, NaN where it is not held as floats; pattern: ``2:4`` if two of every four are.
    Without ``errors`` no row is paired and no error is known.
    """

    runs = "alone"
    reads = "nothing"

    context: Annotated[int, Field(ge=2)] = 512
    """Tokens in the forward pass whose peak memory is measured; fewer if the model has fewer positions."""
    errors: bool = False
    """Whether weights are compared, which takes longer than rounding them does."""

    def observe(self, context: Context) -> None:
        """Commit one unit per variant: table ``weights`` with the rows of both sides.

        Mixtures of experts add a table ``expert_weights``, the relative error of each matrix of the variant's experts.
        """
        import pandas as pd

        reference, total = context.reference, len(context.variants)
        rows: pd.DataFrame | None = None
        for done, (variant, sink) in enumerate(zip(context.variants, context.sinks, strict=True)):
            context.progress.step("weights", done, total)
            if sink.done(UNIT):
                continue
            if rows is None:
                rows = self._inspect_side("reference", reference)
            both = pd.concat([rows, self._inspect_side("variant", variant)], ignore_index=True)
            sink.commit(UNIT, self._add_errors(both, reference, variant))
        context.progress.step("weights", total, total)

    def _add_errors(self, rows: pd.DataFrame, reference: LoadedModel, variant: LoadedModel) -> dict[str, pd.DataFrame]:
        """The tables of a variant, given the rows of both sides."""
        if not self.errors:
            return {"weights": _tell_errors(rows, [None] * len(rows), variant)}
        found, pairs = _compare(reference, variant)
        frames = {"weights": _tell_errors(rows, _list_errors(rows, found, pairs, variant), variant)}
        experts = _list_experts(found, pairs)
        return frames if experts.empty else frames | {"expert_weights": experts}

    def _inspect_side(self, side: str, loaded: LoadedModel) -> pd.DataFrame:
        import pandas as pd

        rows = [_module_row(side, module) for module in loaded.identity.modules]
        if (cache := _cache_row(side, loaded)) is not None:
            rows.append(cache)
        watched = loaded.language_model.modules is not None
        if watched and loaded.model.device.type == "cuda" and not loaded.identity.simulated:
            rows.append(_special_row(side, "peak", self._peak_bytes(loaded), FLOATS[loaded.identity.dtype]))
        # Named, since an engine may tell nothing of its modules.
        frame = pd.DataFrame(rows, columns=["side", *ModuleFormat.model_fields, "cache"])
        return _add_sparsity(frame, loaded).astype(
            {
                "parameters": "int64",
                "stored_bytes": "int64",
                "bits_per_weight": "float64",
                "distinct_values": "Int64",
            }
        )

    def _peak_bytes(self, loaded: LoadedModel) -> int:
        """Bytes of the weights plus the peak of what a forward pass of ``context`` tokens adds to them.

        The other side's weights are on the same device; they are in the baseline and cancel.
        """
        import torch

        device = loaded.model.device
        positions = getattr(loaded.model.config, "max_position_embeddings", None) or self.context
        ids = torch.zeros((1, min(self.context, positions)), dtype=torch.int64, device=device)
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with torch.no_grad():
            loaded.model(input_ids=ids, use_cache=True)
        torch.cuda.synchronize(device)
        added = torch.cuda.max_memory_allocated(device) - before
        return _device_bytes(loaded) + added


def _add_sparsity(rows: pd.DataFrame, loaded: LoadedModel) -> pd.DataFrame:
    """The rows with the zeros of linear weights."""
    from harness.modules.sparsity import Sparsity, sparsity_of

    model = loaded.language_model.modules
    linear = rows["role"].isin(["linear", "head"])
    found = [
        sparsity_of(model, name) if model is not None and own else Sparsity(None)
        for name, own in zip(rows["module"], linear, strict=True)
    ]
    zeros = [math.nan if each.zeros is None else each.zeros for each in found]
    return rows.assign(zeros=zeros, pattern=[each.pattern for each in found]).astype(
        {"zeros": "float64", "pattern": "str"}
    )


def _compare(reference: LoadedModel, variant: LoadedModel) -> tuple[dict[str, ModuleWeightError], LayerPairs]:
    """The errors of the variant's weights by name of the reference, and the pairs of modules."""
    from harness.modules.layer_pairs import SAME_NAMES, pair_layers
    from harness.modules.weight_errors import weight_errors

    modules = variant.language_model.modules
    if modules is None:
        return {}, SAME_NAMES
    pairs = pair_layers(reference.model, modules, variant.layers)
    formats = {each.module: each.format for each in variant.identity.modules if each.compressed}
    return weight_errors(reference.model, modules, reference.model.dtype, pairs, formats), pairs


def _list_experts(found: Mapping[str, ModuleWeightError], pairs: LayerPairs) -> pd.DataFrame:
    """One row (module, expert, matrix, relative_error) per matrix of the variant's experts whose error is known."""
    import pandas as pd

    rows: list[tuple[str, int, str, float]] = []
    for name, error in found.items():
        own = pairs.find_in_variant(name) or name
        if error.experts:
            module, _, matrix = own.rpartition(".")
            rows += [(module, k, matrix, each) for k, each in enumerate(error.experts) if each is not None]
        elif (expert := _EXPERT.fullmatch(own)) and error.relative_error is not None:
            rows.append((expert["module"], int(expert["number"]), expert["matrix"], error.relative_error))
    frame = pd.DataFrame(rows, columns=["module", "expert", "matrix", "relative_error"])
    kinds = {"module": "str", "expert": "int32", "matrix": "str", "relative_error": "float64"}
    return frame.astype(kinds)


def _list_errors(
    rows: pd.DataFrame, found: Mapping[str, ModuleWeightError], pairs: LayerPairs, variant: LoadedModel
) -> list[ModuleWeightError | None]:
    """The error of each row's weight; None for rows that are not linear layers of the variant."""
    from harness.modules.layer_pairs import list_parents
    from harness.modules.weight_errors import ModuleWeightError

    nothing = ModuleWeightError(None, 0.0, "the variant's engine gives no access to its weights")
    if variant.language_model.modules is not None:
        nothing = ModuleWeightError(None, 0.0, "the reference has no linear layer of this name")
    linear = rows["role"].isin(["linear", "head"])
    own = set(rows["module"][linear & (rows["side"] == "variant")])
    errors: list[ModuleWeightError | None] = []
    for side, name, wanted in zip(rows["side"], rows["module"], linear, strict=True):
        error = None
        if wanted and side == "variant":
            partner = pairs.find_in_reference(name)
            lone = None if pairs.declared else ModuleWeightError(None, 0.0, pairs.reason)
            # A part of what is one linear layer in the reference (an adapter's, say) counts with the whole.
            inside = partner is not None and any(outer in found for outer in list_parents(partner))
            error = lone if partner is None else None if inside else found.get(partner, nothing)
        elif wanted and name in found and (partner := pairs.find_in_variant(name)) not in own:
            # No row of the variant tells what the reference alone has.
            error = None if partner is None and pairs.declared else found[name]
        errors.append(error)
    return errors


def _tell_errors(rows: pd.DataFrame, errors: Sequence[ModuleWeightError | None], variant: LoadedModel) -> pd.DataFrame:
    """The rows with the error of each one's weight."""
    linear = rows["role"].isin(["linear", "head"])
    stated = {each.module for each in variant.identity.modules if each.compressed}
    return rows.assign(
        compressed=(rows["side"] == "variant") & rows["module"].isin(stated) & linear,
        paired=[error is not None for error in errors],
        relative_error=[math.nan if e is None or e.relative_error is None else e.relative_error for e in errors],
        rounding_error=[math.nan if e is None or e.rounding_error is None else e.rounding_error for e in errors],
        explained_error=[math.nan if e is None or e.explained is None else e.explained for e in errors],
        retrained=[name in variant.retrained for name in rows["module"]],
        compared=[0.0 if e is None else e.compared for e in errors],
        error_note=["" if e is None else e.note for e in errors],
    ).astype(
        {
            "compressed": "bool",
            "paired": "bool",
            "relative_error": "float64",
            "compared": "float64",
            "error_note": "str",
            "rounding_error": "float64",
            "explained_error": "float64",
            "retrained": "bool",
        }
    )


def _module_row(side: str, module: ModuleFormat) -> dict[str, Any]:
    """The columns of a module; formats as JSON of their records."""
    inputs = module.activations.model_dump_json(exclude_defaults=True) if module.activations else ""
    own = {"format": module.format.model_dump_json(exclude_defaults=True), "activations": inputs, "cache": ""}
    return {"side": side, **module.model_dump(mode="python"), **own}


def _special_row(side: str, name: str, size: int, number_format: NumberFormat) -> dict[str, Any]:
    """A row that is not a module: it has no parameters, so that sums over modules stay correct."""
    empty = ModuleFormat(
        module=name, type=name, parameters=0, stored_bytes=size, bits_per_weight=0.0, format=number_format
    )
    return _module_row(side, empty)


def _device_bytes(loaded: LoadedModel) -> int:
    """Bytes of the model's tensors, tied ones counted once."""
    from harness.modules.inspection import named_tensors, stored_bytes

    return sum({tensor.data_ptr(): stored_bytes(tensor) for _, tensor in named_tensors(loaded.model)}.values())


def _cache_row(side: str, loaded: LoadedModel) -> dict[str, Any] | None:
    """The bytes that one more token adds to the cache; None for a model without a cache, or with a hidden one."""
    from harness.modules.inspection import format_of_dtype

    if loaded.language_model.modules is None:
        return None
    one, two = _cache(loaded, 1), _cache(loaded, 2)
    if not two:
        return None
    dtype, cache = next((t.dtype for t in two if t.is_floating_point()), two[0].dtype), loaded.identity.cache
    row = _special_row(side, "kv_cache", _bytes(two) - _bytes(one), format_of_dtype(dtype))
    if cache is not None:
        row |= {"cache": cache.model_dump_json(), "kernel": cache.kernel, "backend": cache.backend}
    if cache is not None and cache.kernel == "simulated":
        values = sum(t.numel() for t in two) - sum(t.numel() for t in one)
        row["stored_bytes"] = math.ceil(values * cache.bits_per_value / 8)
    return row


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _cache(loaded: LoadedModel, tokens: int) -> list[Tensor]:
    import torch

    ids = torch.zeros((1, tokens), dtype=torch.int64, device=loaded.model.device)
    with torch.no_grad():
        output = loaded.model(input_ids=ids, use_cache=True)
    return list(_tensors(getattr(output, "past_key_values", None)))


def _tensors(cache: object) -> Iterator[Tensor]:
    """The tensors in a cache: of its layers if it has them, else of nested tuples."""
    import torch

    if isinstance(cache, torch.Tensor):
        yield cache
    elif isinstance(layers := getattr(cache, "layers", cache), list | tuple):
        for layer in layers:
            yield from _tensors(layer)
    elif isinstance(held := getattr(layers, "__dict__", None), Mapping):
        for name in sorted(held):
            if isinstance(held[name], torch.Tensor):
                yield held[name]
