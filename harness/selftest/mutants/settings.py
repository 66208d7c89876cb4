"""Mutants whose weights are intact: files beside them lost what no document shows."""

from __future__ import annotations

from pathlib import Path

from harness.selftest.mutants import NotApplicable, mutant_files
from harness.selftest.mutants._files import read_json, write_json

CONFIG, GENERATION, SETTINGS = "config.json", "generation_config.json", "tokenizer_config.json"


@mutant_files()
def stop_token_lost(folder: Path) -> None:
    """Answers no longer end at a stop token: generation_config.json was written anew without it."""
    content = read_json(folder / GENERATION)
    stops = content.get("eos_token_id")
    if stops is None:
        raise NotApplicable(f"{GENERATION} names no stop token")
    kept = stops[:-1] if isinstance(stops, list) else []
    write_json(folder / GENERATION, {key: value for key, value in content.items() if key != "eos_token_id"})
    if kept:
        write_json(folder / GENERATION, content | {"eos_token_id": kept})


@mutant_files()
def end_token_exchanged(folder: Path) -> None:
    """tokenizer_config.json names the start token as the end token: servers that follow it stop elsewhere."""
    content = read_json(folder / SETTINGS)
    start = content.get("bos_token")
    if start is None or start == content.get("eos_token"):
        raise NotApplicable(f"{SETTINGS} names no start token of its own")
    write_json(folder / SETTINGS, content | {"eos_token": start})


@mutant_files()
def sampling_changed(folder: Path) -> None:
    """Every answer is sampled with a penalty for repetition that the reference does not have."""
    write_json(folder / GENERATION, read_json(folder / GENERATION) | {"repetition_penalty": 1.8})


@mutant_files()
def context_shortened(folder: Path) -> None:
    """config.json declares half the context: an export wrote the length of its calibration documents."""
    content = read_json(folder / CONFIG)
    length = content.get("max_position_embeddings")
    if not isinstance(length, int):
        raise NotApplicable(f"{CONFIG} declares no max_position_embeddings")
    write_json(folder / CONFIG, content | {"max_position_embeddings": length // 2})
