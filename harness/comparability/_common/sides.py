"""What a user of one model loads beside its weights, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.comparability._common.header import Header
from harness.errors import HarnessError, ModelError
from harness.system.foreign import guard

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

CONFIG, GENERATION = "config.json", "generation_config.json"
PIPELINE, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
VOCABULARIES = frozenset({
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "vocab.txt",
    "added_tokens.json", "vocab.model", "tokenizer.tiktoken", "tekken.json",
})  # fmt: skip
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
NOT_ENCODING = frozenset({
    "chat_template", "transformers_version", "name_or_path", "padding_side", "truncation_side", "model_max_length",
    "pad_token", "clean_up_tokenization_spaces",
})  # fmt: skip
"""Keys of tokenizer_config.json that change no token id of a text."""
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Side:
    """One model as its users load it.

    folder: its files; None for a model in a single file of another kind (GGUF), of which the ``header`` and the
    ``loaded`` tokenizer can be compared. tokenizer_folder: where its tokenizer files are. loaded: its tokenizer, if it
    is loaded already; borrowed: it is the other side's, though the single file holds one that its users get.
    """

    name: str
    folder: Path | None
    tokenizer_folder: Path | None
    loaded: PreTrainedTokenizerBase | None = None
    header: Header | None = None
    borrowed: bool = False
    endless_templates: dict[str, str] = field(default_factory=dict, init=False, compare=False)
    """Chat templates that reached the time limit, with what was said of it."""

    @cached_property
    def config(self) -> Json | None:
        """config.json."""
        return None if self.folder is None else read_object(self.folder / CONFIG)

    @cached_property
    def generation(self) -> Json | None:
        """generation_config.json; None if there is none."""
        return None if self.folder is None else read_object(self.folder / GENERATION)

    @cached_property
    def pipeline(self) -> Json | None:
        """tokenizer.json; None if there is none."""
        return None if self.tokenizer_folder is None else read_object(self.tokenizer_folder / PIPELINE)

    @cached_property
    def vocabulary_files(self) -> Mapping[str, bytes]:
        """The content of the files of older tokenizers, which hold no pipeline, by name."""
        if self.tokenizer_folder is None:
            return {}
        found = {path.name: path for path in self.tokenizer_folder.iterdir() if path.name in VOCABULARIES}
        return {name: path.read_bytes() for name, path in sorted(found.items())}

    @cached_property
    def settings(self) -> Json:
        """tokenizer_config.json, with the special tokens of older checkpoints."""
        if self.tokenizer_folder is None:
            known_of = ("model_max_length", "padding_side")
            return {name: getattr(self.loaded, name, None) for name in known_of}
        older = read_object(self.tokenizer_folder / SPECIAL) or {}
        known = {key: value for key, value in older.items() if key in SPECIAL_TOKENS}
        return known | dict(read_object(self.tokenizer_folder / SETTINGS) or {})

    @cached_property
    def encoding_settings(self) -> Json:
        """The part of ``settings`` on which token ids can depend."""
        return {key: value for key, value in self.settings.items() if key not in NOT_ENCODING}

    @cached_property
    def chat_templates(self) -> Mapping[str, str]:
        """Chat templates by name; a file of its own wins over tokenizer_config.json, as in transformers."""
        if self.header is not None:
            return self.header.chat_templates
        if self.tokenizer_folder is None:
            return _read_templates(getattr(self.loaded, "chat_template", None))
        found = _read_templates(self.settings.get("chat_template"))
        older = read_object(self.tokenizer_folder / "chat_template.json") or {}
        found |= _read_templates(older.get("chat_template"))
        files = {"default": self.tokenizer_folder / "chat_template.jinja"}
        files |= {path.stem: path for path in sorted(self.tokenizer_folder.glob("additional_chat_templates/*.jinja"))}
        return found | {name: _read(path) for name, path in files.items() if path.is_file()}

    @cached_property
    def special_tokens(self) -> Mapping[str, str]:
        """The special tokens that have a role (``bos_token`` …), by role."""
        if self.header is not None:
            named = ((role, self.header.special_token(role)) for role in SPECIAL_TOKENS)
            return {role: token for role, token in named if token is not None}
        if self.tokenizer_folder is None:
            found = ((role, getattr(self.loaded, role, None)) for role in SPECIAL_TOKENS)
            return {role: token for role, token in found if isinstance(token, str)}
        tokens = {role: self.settings.get(role) for role in SPECIAL_TOKENS}
        plain = {role: t.get("content") if isinstance(t, Mapping) else t for role, t in tokens.items()}
        return {role: token for role, token in plain.items() if isinstance(token, str)}

    @cached_property
    def fast(self) -> Tokenizer:
        """The tokenizer of tokenizer.json itself."""
        if self.pipeline is None:
            raise ModelError(f"{self.name}: has no {PIPELINE}")
        return make_tokenizer(self.pipeline, f"{self.name}: its {PIPELINE}")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer as transformers loads it."""
        if self.loaded is not None:
            return self.loaded
        from transformers import AutoTokenizer

        try:
            with guard(f"{self.name}: loading its tokenizer"):
                loaded = AutoTokenizer.from_pretrained(self.tokenizer_folder, local_files_only=True)
        except Exception as error:  # Nearly anything is raised for files that do not fit.
            raise ModelError(f"{self.name}: its tokenizer cannot be loaded: {type(error).__name__}: {error}") from error
        return cast("PreTrainedTokenizerBase", loaded)

    def token(self, number: int) -> str:
        """The content of a token id, as far as tokenizer.json tells."""
        if self.pipeline is not None:
            source: object = self.fast.id_to_token(number)
        else:
            source = self.loaded.convert_ids_to_tokens(number) if self.loaded is not None else ""
        return source if isinstance(source, str) else ""


@dataclass(frozen=True)
class Sides:
    """Both models, and the texts of a suite (none outside a run). same_files: as in ``Comparison``."""

    reference: Side
    variant: Side
    texts: Sequence[str] = ()
    same_files: bool = False
    same_tokenizer: bool = field(default=False)
    """Whether both sides' loaded tokenizers are known to be equal."""

    @cached_property
    def as_loaded(self) -> bool:
        """Whether ids must be those of transformers: tokenizer.json alone does not tell what users get."""
        both = (self.reference, self.variant)
        return (
            any(side.loaded is not None or side.pipeline is None for side in both)
            or self.reference.encoding_settings != self.variant.encoding_settings
        )

    @cached_property
    def same_pipeline(self) -> bool:
        """Whether tokenizer.json says the same on both sides, or neither has one and the vocabularies are equal."""
        one, other = self.reference, self.variant
        if one.pipeline is None and other.pipeline is None:
            return bool(one.vocabulary_files) and one.vocabulary_files == other.vocabulary_files
        return one.pipeline is not None and one.pipeline == other.pipeline

    @cached_property
    def same_ids(self) -> bool:
        """Whether both tokenizers must give the same ids."""
        return self.same_tokenizer or (
            self.same_pipeline and self.reference.encoding_settings == self.variant.encoding_settings
        )

    def decode(self, side: Side, ids: Sequence[int]) -> str:
        """The text that a user of ``side`` reads for token ids, without special tokens."""
        with _blame(side):
            return str(side.tokenizer.decode(list(ids), skip_special_tokens=True))

    def encode(self, side: Side, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as a user of ``side`` gets them: with the special tokens that are added by default."""
        with _blame(side):
            if self.as_loaded:
                found = side.tokenizer(list(texts), padding=False, truncation=False, verbose=False)["input_ids"]
                return [list(ids) for ids in cast("list[list[int]]", found)]
            return [encoding.ids for encoding in without_truncation(side.fast).encode_batch(list(texts))]


@contextmanager
def _blame(side: Side) -> Iterator[None]:
    """Raise what a tokenizer raises as ModelError: tokenizers are files and code of others."""
    try:
        with guard(f"the tokenizer of {side.name}"):
            yield
    except HarnessError:
        raise
    except Exception as error:
        raise ModelError(f"{side.name}: its tokenizer fails: {type(error).__name__}: {error}") from error


def read_side(folder: Path, name: str) -> Side:
    """The model of a folder. Raises ModelError if it has no config.json, or one that is damaged."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; expected the folder of a model")
    side = Side(name, folder, folder)
    if side.config is None:
        raise ModelError(f"{folder}: has no {CONFIG}, so it is not a model folder of transformers")
    return side


def make_tokenizer(pipeline: Json, what: str) -> Tokenizer:
    """A tokenizer of the content of a tokenizer.json. Raises ModelError if the library refuses it."""
    from tokenizers import Tokenizer

    try:
        with guard(what):
            return Tokenizer.from_str(json.dumps(pipeline))
    except Exception as error:  # The library raises plain exceptions.
        raise ModelError(f"{what} is refused by the library tokenizers: {error}") from error


def without_truncation(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, neither cutting nor padding."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no such file. Raises ModelError if it is damaged."""
    if not path.is_file():
        return None
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}, expected an object")
    return content


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error


def _read_templates(found: object) -> dict[str, str]:
    """Templates by name, of a text, a list of names with texts, or a table of them."""
    if isinstance(found, str):
        return {"default": found}
    if isinstance(found, Mapping):
        return {str(name): text for name, text in found.items() if isinstance(text, str)}
    entries = [each for each in found if isinstance(each, Mapping)] if isinstance(found, Sequence) else []
    named = ((each.get("name"), each.get("template")) for each in entries)
    return {name: text for name, text in named if isinstance(name, str) and isinstance(text, str)}
