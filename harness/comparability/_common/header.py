"""What the header of a model in a single file (GGUF) says of the things that folders say in files of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_STOPS = ("eos", "eot", "eom")
_ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
})  # fmt: skip
"""Tokens at which llama.cpp stops wherever a vocabulary has them, whatever the header says (llama-vocab.cpp)."""
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""Sampling defaults of a header, and what generation_config.json calls them."""
_CONFIG = {
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attention.sliding_window": "sliding_window",
}
"""Fields of a header that decide beyond which position texts are read otherwise, and what config.json calls them."""


@dataclass(frozen=True)
class Header:
    """The scalar metadata and the tokens of a file. architecture: the prefix of its own fields."""

    architecture: str
    values: Mapping[str, Any]
    tokens: Sequence[str]

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer by what the header says."""
        found = (self.values.get(f"tokenizer.ggml.{each}_token_id") for each in _STOPS)
        return frozenset(each for each in found if isinstance(each, int))

    @property
    def known_ends(self) -> frozenset[int]:
        """The ids that end an answer by their names."""
        return frozenset(number for number, token in enumerate(self.tokens) if token in _ENDS)

    @property
    def chat_templates(self) -> dict[str, str]:
        """Chat templates by name."""
        key = "tokenizer.chat_template"
        named = {name.removeprefix(f"{key}."): text for name, text in self.values.items() if name.startswith(f"{key}.")}
        main = {"default": self.values[key]} if key in self.values else {}
        return {name: text for name, text in (named | main).items() if isinstance(text, str)}

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling defaults, by their names in generation_config.json; empty if the header states none."""
        stated = {name: self.values.get(f"general.sampling.{key}") for key, name in _SAMPLING.items()}
        return {name: value for name, value in stated.items() if value is not None}

    @property
    def config(self) -> dict[str, Any]:
        """Lengths and rotary embeddings, by their names in config.json."""
        stated = {name: self.values.get(f"{self.architecture}.{key}") for key, name in _CONFIG.items()}
        return {name: value for name, value in stated.items() if value is not None}

    def special_token(self, role: str) -> str | None:
        """The token of a role (``bos_token``)."""
        called = {"unk_token": "unknown", "pad_token": "padding", "sep_token": "seperator"}
        number = self.values.get(f"tokenizer.ggml.{called.get(role, role.removesuffix('_token'))}_token_id")
        return self.tokens[number] if isinstance(number, int) and 0 <= number < len(self.tokens) else None
