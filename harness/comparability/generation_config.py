"""The part ``generation_config``: what every answer is sampled with unless the user says otherwise."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from harness.comparability import NotComparable, Part
from harness.comparability._common.pipeline import show_value
from harness.comparability._common.sides import Side, Sides
from harness.records import Difference

DEFAULTS: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "diversity_penalty": 0.0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "min_length": 0,
    "max_length": 20,
    "early_stopping": False,
    "renormalize_logits": False,
    "remove_invalid_values": False,
}
"""What transformers takes for a field that is not stated; None for every other."""
NO_BEHAVIOUR = frozenset({
    "transformers_version", "_from_model_config", "_name_or_path", "_commit_hash", "use_cache", "cache_implementation",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "eos_token_id", "bos_token_id", "pad_token_id", "trust_remote_code", "prefill_chunk_size", "compile_config",
})  # fmt: skip
"""Fields that change no token of an answer, and those that the part ``stop_tokens`` compares."""


class GenerationDefaults(Part):
    """What every answer is sampled with unless its user says otherwise: temperature, penalties, suppressed tokens."""

    title: ClassVar[str] = "the generation defaults"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        both = (sides.reference, sides.variant)
        if any(side.folder is None and side.header is None for side in both):
            raise NotComparable("a model in a single file has no generation_config.json")
        stated = [_read_settings(side) for side in both]
        headers = [side.header.sampling for side in both if side.header is not None]
        known = [field for field in sorted({*stated[0], *stated[1]}) if all(field in header for header in headers)]
        for field in known:
            one, other = (each.get(field, DEFAULTS.get(field)) for each in stated)
            if not _is_same(one, other, rounded=bool(headers)):
                yield Difference(
                    part=self.kind,
                    field=field,
                    reference=show_value(one),
                    variant=show_value(other),
                    meaning="servers apply it to every answer that states nothing else",
                    severity="at_once",
                )
        if unknown := _find_unknown(stated, known):
            raise NotComparable(
                f"a model in a single file does not state {', '.join(unknown)}, so its engine's defaults hold"
            )


def _find_unknown(stated: Sequence[Mapping[str, Any]], known: Sequence[str]) -> list[str]:
    """What one side states otherwise than by default, and a header leaves open.

    Whether to sample is settled where a header states how.
    """
    settled = {*known, "do_sample"} if "temperature" in known else set(known)
    asked = {name for each in stated for name, value in each.items() if value != DEFAULTS.get(name)}
    return sorted(asked - settled)


def _is_same(one: object, other: object, rounded: bool) -> bool:
    """Whether two values are the same, or round to the same one where a header holds floats of 32 bits."""
    if rounded and isinstance(one, int | float) and isinstance(other, int | float):
        return struct.pack("<f", one) == struct.pack("<f", other)
    return one == other


def _read_settings(side: Side) -> dict[str, Any]:
    content = side.generation or {} if side.header is None else side.header.sampling
    return {key: value for key, value in content.items() if value is not None and key not in NO_BEHAVIOUR}
