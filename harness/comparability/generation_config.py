"""The part ``generation_config``: what every answer is sampled with unless the user says otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from harness.comparability import NotComparable, Part
from harness.comparability._pipeline import show_value
from harness.comparability._sides import Side, Sides
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
        if sides.reference.folder is None or sides.variant.folder is None:
            raise NotComparable("a model in a single file has no generation_config.json")
        ours, theirs = _read_settings(sides.reference), _read_settings(sides.variant)
        for field in sorted(ours.keys() | theirs.keys()):
            one, other = (each.get(field, DEFAULTS.get(field)) for each in (ours, theirs))
            if one != other:
                yield Difference(
                    part=self.kind,
                    field=field,
                    reference=show_value(one),
                    variant=show_value(other),
                    meaning="servers apply it to every answer that states nothing else",
                    severity="at_once",
                )


def _read_settings(side: Side) -> dict[str, Any]:
    content = side.generation or {}
    return {key: value for key, value in content.items() if value is not None and key not in NO_BEHAVIOUR}
