"""Compares a loaded tokenizer with its own tokenizer.json: whether both turn the same texts into the same ids.

transformers makes some classes of tokenizers anew, from the vocabulary alone. If tokenizer_config.json names such a
class over a file of another kind, its pre-tokenizer or normalizer is lost, and the model reads ids it was never trained
on. Two sides that both do so do not differ from each other, so they are compared with the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from harness.errors import HarnessError, ModelError
from harness.models.weight_files import read_json
from harness.records import Note
from harness.system.foreign import guard

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
SAMPLES = (
    "In 1987 she said: hello, world 42.",
    " leading, and  double   spaces ",
    "a line\nanother\n\n\ta tab\r\nand the last",
    "ALL CAPITALS and MiXeD cAsE",
    "café, naïve, Ünder, straße",
    "e\u0301 combined, \ufb01 ligature, \u2460 \u2163 \u212b",
    "中文字符、日本語、한국어",
    "Привет, мир; שלום; مرحبا; नमस्ते",
    "🙂 👩\u200d👩\u200d👧 \u2764\ufe0f",
    "def f(x):\n    return x**2  # 3.14e-10\n",
    "https://example.org/a?b=c&d=%20#e <b>&amp;</b>",
    "a\u00a0no-break space, zero\u200bwidth, \ufeffmark",
    "I've, don't, we'll, o'clock, rock'n'roll",
    "“quotes” … — – ' ` ´",
    "12345678901234567890 1,234.5 007",
    "word",
)
"""Texts that the usual normalizers and pre-tokenizers treat differently."""
MOST_DOCUMENTS, MOST_CHARACTERS = 100, 4000
"""Documents, and characters of each, that are compared."""
IN_COMPONENTS = {
    "add_prefix_space": "add_prefix_space",
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Settings of tokenizer_config.json that transformers puts into the file's components, by their names there."""
AS_THE_FILE_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Names in tokenizer_config.json of the classes that take tokenizer.json as it is."""
OF_TEMPLATES = ("add_bos_token", "add_eos_token")
"""Settings of tokenizer_config.json by which transformers replaces the post-processor of the file."""


def verify_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase) -> tuple[Note, ...]:
    """Compare a tokenizer of a folder with its file on sample texts and on its own special tokens.

    Nothing is compared without a tokenizer.json. Returns notes on differences that tokenizer_config.json asks for.
    Raises ModelError for any other.
    """
    path = _file_of(tokenizer)
    if path is None:
        return ()
    content = json.loads(path.read_text(encoding="utf-8"))
    special = [token["content"] for token in content.get("added_tokens") or ()][:32]
    asked = verify_texts(tokenizer, [*SAMPLES, *(f"one {token} two" for token in special)])
    notes = [f"{name}: {SETTINGS} changes how {FILE} encodes texts, as asked: {asked}"] if asked else []
    return tuple(Note(topic="tokenizer", text=text) for text in notes) + tuple(
        _compare_templates(name, tokenizer, path)
    )


def verify_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> str:
    """Compare a tokenizer with its file on the beginnings of some texts; returns the settings that explain differences.

    Raises ModelError naming the class, the file, the first text that is encoded differently, and its ids.
    """
    path = _file_of(tokenizer)
    if path is None:
        return ""
    settings = read_json(path.parent / SETTINGS) if (path.parent / SETTINGS).is_file() else {}
    content = json.loads(path.read_text(encoding="utf-8"))
    stated, adapted = _read(path, content), None
    for text in (text[:MOST_CHARACTERS] for text in texts[:MOST_DOCUMENTS]):
        wanted = _encode_as_stated(stated, text)
        found, refusal = _encode(tokenizer, text, path)
        if found == wanted:  # also where neither can encode the text: then it is none of the model's
            continue
        if found is None:
            raise ModelError(_explain(path, tokenizer, text, wanted or [], f"not at all ({refusal})"))
        adapted = adapted or _read(path, _apply(content, settings))
        if _encode_as_stated(adapted, text) != found:
            raise ModelError(_explain(path, tokenizer, text, wanted or [], f"as {_shorten(found)}"))
    if adapted is None:
        return ""
    named = [key for key in (*IN_COMPONENTS, "added_tokens_decoder") if settings.get(key) is not None]
    return ", ".join(named)


def _file_of(tokenizer: PreTrainedTokenizerBase) -> Path | None:
    """The tokenizer.json from which a tokenizer was loaded; None if there is none."""
    folder = tokenizer.name_or_path
    path = Path(folder or ".") / FILE
    return path if folder and path.is_file() else None


def _read(path: Path, content: Mapping[str, Any]) -> Tokenizer:
    try:
        with guard(f"{path}: reading it"):
            made = Tokenizer.from_str(json.dumps(content))
    except HarnessError:
        raise
    except Exception as error:  # The library raises plain exceptions only.
        raise ModelError(
            f"{path}: damaged, the library tokenizers cannot read it: {error}; restore the file"
        ) from error
    made.no_truncation()
    made.no_padding()
    return made


def _apply(content: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of tokenizer.json with the settings of tokenizer_config.json that transformers puts into it."""
    values = {IN_COMPONENTS[key]: settings[key] for key in IN_COMPONENTS if settings.get(key) is not None}

    def replace(part: Any) -> Any:
        if isinstance(part, list):
            return [replace(each) for each in part]
        if not isinstance(part, dict):
            return part
        return {key: values[key] if key in values else replace(each) for key, each in part.items()}

    changed = {key: replace(content.get(key)) for key in ("normalizer", "pre_tokenizer")}
    declared = settings.get("added_tokens_decoder") or {}
    added = {token["id"]: token for token in content.get("added_tokens") or ()}
    added |= {int(key): {"id": int(key), **token} for key, token in declared.items()}
    return {**content, **changed, "added_tokens": [added[key] for key in sorted(added)]}


def _encode_as_stated(stated: Tokenizer, text: str) -> list[int] | None:
    """The ids by the file itself; None if it has none for the text (a vocabulary of words without an unknown one)."""
    try:
        return stated.encode(text, add_special_tokens=False).ids
    except Exception:  # noqa: BLE001 - the library raises plain exceptions only
        return None


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, path: Path) -> tuple[list[int] | None, str]:
    """The ids by the loaded tokenizer; None, and the reason, if it has none."""
    try:
        with guard(f"the tokenizer of {path.parent}"):
            return cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]), ""
    except Exception as error:  # noqa: BLE001 - tokenizers are files and code of others, and raise anything
        return None, f"{type(error).__name__}: {error}"


def describe_class(folder: Path) -> str:
    """What chose the class of a folder's tokenizer: "named T5Tokenizer in tokenizer_config.json"."""
    named = _read_class(folder)
    return f"named {named} in {SETTINGS}" if named else "chosen by the model type in config.json"


def _read_class(folder: Path) -> str | None:
    settings = folder / SETTINGS
    return read_json(settings).get("tokenizer_class") if settings.is_file() else None


def _explain(path: Path, tokenizer: PreTrainedTokenizerBase, text: str, wanted: Sequence[int], found: str) -> str:
    shown = text if len(text) <= 60 else text[:60] + "…"
    if _read_class(path.parent) in AS_THE_FILE_IS:
        todo = "transformers takes this class for this model_type, whatever is named there: make the file with it"
    else:
        todo = f"set tokenizer_class in {SETTINGS} to {AS_THE_FILE_IS[0]}, which takes the file as it is"
    return (
        f"{path}: the loaded tokenizer is not the one of this file: the class {type(tokenizer).__name__} "
        f"({describe_class(path.parent)}) "
        f"encodes {shown!r} {found}, expected {_shorten(wanted)} as in the file; {todo}"
    )


def _shorten(ids: Sequence[int]) -> str:
    return f"[{', '.join(map(str, ids[:12]))}{', …' if len(ids) > 12 else ''}]"


def _compare_templates(name: str, tokenizer: PreTrainedTokenizerBase, path: Path) -> Iterator[Note]:
    """A note if the loaded tokenizer puts other special tokens around a text than its file."""
    stated = _read(path, json.loads(path.read_text(encoding="utf-8"))).encode(SAMPLES[-1])
    ids = tokenizer(SAMPLES[-1], verbose=False)["input_ids"]
    if stated.ids == ids:
        return
    found, wanted = tokenizer.convert_ids_to_tokens(ids), stated.tokens
    settings = read_json(path.parent / SETTINGS) if (path.parent / SETTINGS).is_file() else {}
    asked = [f"{key}: {json.dumps(settings[key])}" for key in OF_TEMPLATES if settings.get(key) is not None]
    why = f"as {SETTINGS} asks ({', '.join(asked)})" if asked else f"and nothing in {SETTINGS} asks for that"
    text = (
        f"{name}: a text with special tokens is {' '.join(map(str, found))} after loading and {' '.join(wanted)} in "
        f"{FILE}, {why}; prompts of tasks follow the former, engines that read only the file the latter"
    )
    yield Note(topic="tokenizer", text=text, level="info" if asked else "warn")
