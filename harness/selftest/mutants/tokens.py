"""Mutants whose tokenizer and model disagree on the meaning of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from harness.backends import Compressed
from harness.selftest.mutants import NotApplicable, mutant, mutant_files
from harness.selftest.mutants._files import read_json, write_json

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"


@mutant()
def embeddings_off_by_one(model: PreTrainedModel) -> Compressed:
    """Every token has the embedding of its neighbour: a token was added in front, and the ids were not shifted."""
    weight_VD = _embedding(model).weight.data
    weight_VD.copy_(weight_VD.roll(1, 0))
    return Compressed(model)


@mutant()
def start_token_forgotten(model: PreTrainedModel) -> Compressed:
    """Texts begin with the end token in place of BOS: the model reads that id's embedding instead."""
    config = model.config.get_text_config()
    start, end = config.bos_token_id, config.eos_token_id
    if not isinstance(start, int) or not isinstance(end, int) or start == end:
        raise NotApplicable(f"{type(model).__name__} has no start token of its own beside one end token")
    embedding = _embedding(model)
    # The head keeps its rows: only inputs change, not predictions.
    rows_VD = embedding.weight.detach().clone()
    rows_VD[start] = rows_VD[end]
    embedding.weight = nn.Parameter(rows_VD, requires_grad=False)
    model.config.tie_word_embeddings = False
    return Compressed(model)


@mutant_files()
def bos_dropped(folder: Path) -> None:
    """The tokenizer no longer puts BOS before prompts: its post-processor was lost in a conversion."""
    content = read_json(folder / TOKENIZER)
    if content.get("post_processor") is None:
        raise NotApplicable(f"{TOKENIZER} has no post-processor that could be lost")
    write_json(folder / TOKENIZER, content | {"post_processor": None})
    settings = read_json(folder / SETTINGS)
    write_json(folder / SETTINGS, settings | {"add_bos_token": False} if "add_bos_token" in settings else settings)


@mutant_files()
def token_ids_off_by_one(folder: Path) -> None:
    """Every regular token has the next token's id: a vocabulary counted from one."""
    content = read_json(folder / TOKENIZER)
    vocabulary = content["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        raise NotApplicable(f"{TOKENIZER} has no vocabulary as a table of ids")
    special = {token["id"] for token in content.get("added_tokens", ())}
    ids = sorted(number for number in vocabulary.values() if number not in special)
    after = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    moved = {token: after.get(number, number) for token, number in vocabulary.items()}
    write_json(folder / TOKENIZER, content | {"model": content["model"] | {"vocab": moved}})


@mutant_files()
def prefix_space_added(folder: Path) -> None:
    """Texts get a leading space, which the model was not trained with: a default of another tokenizer class."""
    content = read_json(folder / TOKENIZER)
    changed = _add_prefix_space(content.get("pre_tokenizer"))
    if changed == content.get("pre_tokenizer"):
        raise NotApplicable(f"{TOKENIZER} has no ByteLevel pre-tokenizer without a prefix space")
    write_json(folder / TOKENIZER, content | {"pre_tokenizer": changed})


@mutant_files()
def chat_template_lost(folder: Path) -> None:
    """There is no chat template any more: only the older files of the tokenizer were copied."""
    settings, path = read_json(folder / SETTINGS), folder / "chat_template.jinja"
    if "chat_template" not in settings and not path.is_file():
        raise NotApplicable("the model has no chat template")
    path.unlink(missing_ok=True)
    write_json(folder / SETTINGS, {key: value for key, value in settings.items() if key != "chat_template"})


@mutant_files()
def decoder_lost(folder: Path) -> None:
    """Answers are read without the tokenizer's decoder: bytes are shown as what stands for them."""
    content = read_json(folder / TOKENIZER)
    if content.get("decoder") is None:
        raise NotApplicable(f"{TOKENIZER} has no decoder that could be lost")
    write_json(folder / TOKENIZER, content | {"decoder": None})


@mutant_files()
def special_tokens_shown(folder: Path) -> None:
    """Tokens without a role are no longer special, so answers show them: the flags of added tokens were not copied."""
    content, settings = read_json(folder / TOKENIZER), read_json(folder / SETTINGS)
    held = (settings.get(role) for role in ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token"))
    roles = {token.get("content") if isinstance(token, dict) else token for token in held}
    shown = [token for token in content.get("added_tokens", ()) if token["special"] and token["content"] not in roles]
    if not shown:
        raise NotApplicable(f"{TOKENIZER} has no special token without a role")
    kept = [token | {"special": token["special"] and token not in shown} for token in content["added_tokens"]]
    write_json(folder / TOKENIZER, content | {"added_tokens": kept})


@mutant_files()
def wrong_chat_template(folder: Path) -> None:
    """The chat template is that of another model."""
    template = "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    write_json(folder / SETTINGS, read_json(folder / SETTINGS) | {"chat_template": template})


def _embedding(model: PreTrainedModel) -> nn.Embedding:
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise NotApplicable(f"{type(model).__name__} has no table of embeddings")
    return embedding


def _add_prefix_space(part: Any) -> Any:
    if isinstance(part, list):
        return [_add_prefix_space(each) for each in part]
    if not isinstance(part, dict):
        return part
    inner = {key: _add_prefix_space(value) for key, value in part.items()}
    return inner | {"add_prefix_space": True} if part.get("type") == "ByteLevel" else inner
