"""The part ``configuration``: fields of config.json, and from which position on they matter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.comparability import NotComparable, Part
from harness.comparability._common.config_class import Declared, read_declared, resolve
from harness.comparability._common.pipeline import show_value
from harness.comparability._common.sides import Json, Sides
from harness.records import Difference
from harness.records.comparison import Severity

NO_BEHAVIOUR = frozenset({
    "transformers_version", "_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "auto_map",
    "initializer_range", "initializer_factor", "use_cache", "pretraining_tp", "problem_type", "id2label", "label2id",
    "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward", "gradient_checkpointing",
    "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "tokenizer_class", "num_labels",
    "finetuning_task", "output_router_logits", "router_aux_loss_coef", "unsloth_version", "unsloth_fixed",
})  # fmt: skip
"""Fields about a model's origin, loading or training, which change no output."""
EXPLAINED_ELSEWHERE = frozenset(("quantization_config", "compression_config", "eos_token_id"))
"""How weights are stored is what a variant is about; stop tokens are a part of their own."""
LENGTHS = frozenset(("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_sequence_length"))
WINDOWS = frozenset(("sliding_window", "attention_chunk_size", "sliding_window_pattern", "layer_types"))
WINDOWS |= frozenset(("use_sliding_window", "max_window_layers"))
ROPE = ("rope_parameters", "rope_scaling", "rope_theta")
EVERYWHERE = frozenset(("rope_theta", "partial_rotary_factor"))
"""Fields of rotary embeddings that change every position alike."""
MODALITIES = ("vision", "image", "audio", "video", "speech", "mm_", "boi_", "eoi_")
MEASURED = "in force for every token, so the measured numbers include it"


@dataclass(frozen=True)
class _Kind:
    """What a difference of some field means."""

    meaning: str
    severity: Severity
    from_position: int | None = None


class Configuration(Part):
    """Fields of config.json: what each difference means, and from which position or input on it matters."""

    title: ClassVar[str] = "config.json"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        ours, theirs = sides.reference.config, sides.variant.config
        if ours is None or theirs is None:
            yield from _compare_headers(sides)
            raise NotComparable("a model in a single file has no config.json, and its header states little of it")
        if _flatten(ours) == _flatten(theirs):
            return
        classes = read_declared(ours), read_declared(theirs)
        stated = ours, theirs
        if _flatten(ours).keys() != _flatten(theirs).keys():
            ours, theirs = resolve(ours), resolve(theirs)
        one, other = _flatten(ours), _flatten(theirs)
        for path in sorted(one.keys() | other.keys()):
            if one.get(path) != other.get(path):
                kind = _explain(path, (ours, theirs), stated, classes)
                yield Difference(
                    part=self.kind,
                    field=path,
                    reference=show_value(one.get(path)),
                    variant=show_value(other.get(path)),
                    meaning=kind.meaning,
                    severity=kind.severity,
                    from_position=kind.from_position,
                )


def _compare_headers(sides: Sides) -> Iterator[Difference]:
    """What a header and a config.json, or two headers, both state."""
    fields = [
        side.header.config if side.header is not None else _read_fields(side.config or {})
        for side in (sides.reference, sides.variant)
    ]
    unknown = Declared("", None)
    for name in sorted(fields[0].keys() & fields[1].keys()):
        if fields[0][name] != fields[1][name]:
            kind = _explain(name, (fields[0], fields[1]), (fields[0], fields[1]), (unknown, unknown))
            yield Difference(
                part="configuration",
                field=name,
                reference=show_value(fields[0][name]),
                variant=show_value(fields[1][name]),
                meaning=kind.meaning,
                severity=kind.severity,
                from_position=kind.from_position,
            )


def _read_fields(config: Json) -> dict[str, Any]:
    """Length, window and rotary base of a config.json, where it states one of each."""
    inner = config.get("text_config")
    content = inner if isinstance(inner, Mapping) else config
    found = {"max_position_embeddings": [_read_length(content)]}
    windows = [] if content.get("use_sliding_window") is False else _values(content, ("sliding_window",))
    found |= {"sliding_window": windows, "rope_theta": _values(content, ("rope_theta",), kinds=(int, float))}
    return {name: values[0] for name, values in found.items() if len(values) == 1 and values[0] is not None}


def _flatten(content: Json, prefix: str = "") -> dict[str, Any]:
    """Values by dotted path, without fields that change no output; a field that is null is as one not stated."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key in NO_BEHAVIOUR or key in EXPLAINED_ELSEWHERE or key.endswith(("dropout", "_pdrop", "dropout_prob")):
            continue
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value
    return found


def _explain(
    path: str, sides: tuple[Json, Json], stated: tuple[Json, Json], classes: tuple[Declared, Declared]
) -> _Kind:
    """What a difference of the field at ``path`` means."""
    for side, declared in zip(stated, classes, strict=True):
        if path in _flatten(side) and not declared.knows(path):
            meaning = (
                f"{declared.name} does not declare it, so what it asks for is not computed here; another engine may "
                "compute it"
            )
            return _Kind(meaning, "beyond_inputs")
    leaf, parents = path.rpartition(".")[2], path.split(".")[:-1]
    if leaf in LENGTHS:
        return _from("positions beyond are refused, or extrapolated, on one side only", _ends(sides, path), sides)
    if leaf in WINDOWS:
        windows = [value for side in sides for value in _values(side, ("sliding_window", "attention_chunk_size"))]
        return _from("attention reaches farther back on one side", min(windows, default=None), sides)
    if any(name in ROPE for name in (*parents, leaf)) and leaf not in EVERYWHERE:
        return _explain_rope(sides)
    if any(name.startswith(MODALITIES) for name in (*parents, leaf)):
        return _Kind("matters for inputs other than text, which no document of a suite holds", "beyond_inputs")
    return _Kind(MEASURED, "informative")


def _explain_rope(sides: tuple[Json, Json]) -> _Kind:
    """Rotary embeddings: dynamic scaling begins beyond the length that a model was made for, all other at once."""
    ours, theirs = (_read_length(side) for side in sides)
    if {_rope_type(side) for side in sides} <= {"default", "dynamic"}:
        begins = min((length for length in (ours, theirs) if length is not None), default=None)
        return _from("rotary embeddings are scaled there, on one side only or otherwise", begins, sides)
    meaning = "rotary embeddings are scaled differently: most where texts are longer than those of a suite"
    if ours is not None and theirs is not None and theirs > ours:
        return _Kind(f"{meaning}; the variant declares a longer context", "beyond_inputs", 1)
    return _from(meaning, 1, sides)


def _rope_type(side: Json) -> str:
    found = [*_values(side, ("rope_type",), kinds=str), *_values(side, ("type",), kinds=str)]
    return str(found[0]) if found else "default"


def _from(meaning: str, position: int | None, sides: tuple[Json, Json]) -> _Kind:
    """What matters from a position on: at once, if that lies within the context that the reference declares."""
    declared = _read_length(sides[0])
    within = position is not None and declared is not None and position < declared
    return _Kind(meaning, "at_once" if within else "beyond_inputs", position)


def _read_length(side: Json) -> int | None:
    return max(_values(side, LENGTHS), default=None)


def _ends(sides: tuple[Json, Json], path: str) -> int | None:
    found = (_flatten(side).get(path) for side in sides)
    return min((value for value in found if isinstance(value, int)), default=None)


def _values(content: Json, names: Iterable[str], kinds: type | tuple[type, ...] = int) -> list[Any]:
    """The values of all fields of these names, at any depth."""
    wanted = frozenset(names)
    return [
        value
        for path, value in _flatten(content).items()
        if path.rpartition(".")[2] in wanted and isinstance(value, kinds)
    ]
