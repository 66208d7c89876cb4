"""Number formats in a run.json of schema 1, which had words for them: the only place where such words are read.

Words that no backend of that time wrote (those of a plugin, say) stay as they are, as the name of an unknown format.
"""

from __future__ import annotations

import re
from typing import Any

_NAMES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("int", re.compile(r"u?int(?P<bits>\d+)")),
    ("int", re.compile(r"Q(?P<bits>\d)_\w+")),  # GGUF
    ("float", re.compile(r"b?float(?P<bits>\d+)\w*")),
    ("float", re.compile(r"(mx|nv)?fp(?P<bits>\d)\w*|MXFP(?P<gguf_bits>\d)")),
    ("codebook", re.compile(r"nf(?P<bits>\d)")),
    ("codebook", re.compile(r"codebook(?P<bits>\d)(?P<sparse>\+sparse)?")),
)
_FORMAT = re.compile(
    r"(?P<name>[A-Za-z]+[0-9]+\w*)(?P<grid> asymmetric| symmetric| affine)?"
    r"( (?P<unscaled>without scales)| per (?P<unit>tensor|token|channel|group|block)"
    r"( of (?P<size>\d+)|, groups of (?P<cells>\d+) (tokens|channels)|(?P<head>, a whole head))?"
    r"| in groups of (?P<groups>\d+))?"
    r"(, (?P<when>dynamic|static)( \((?P<ranges>[a-z_]+)( (?P<percentile>[0-9.]+))?\))?)?"
    r"(; columns with \|x\| >= (?P<outliers>[0-9.]+) in full precision)?"
)
_SKIPPED = re.compile(r"(?P<words>.*) \(not in layers (?P<layers>[0-9, ]+)\)")


def upgrade_identity(identity: dict[str, Any]) -> None:
    """The modules and the KV cache of one side."""
    modules = identity.get("modules")
    for module in modules if isinstance(modules, list) else ():
        if isinstance(module, dict) and isinstance(module.get("format"), str):
            _upgrade_module(module)
    cache = identity.get("cache")
    if isinstance(cache, dict) and isinstance(cache.get("keys"), str) and isinstance(cache.get("values"), str):
        _upgrade_cache(cache)


def _upgrade_module(module: dict[str, Any]) -> None:
    moved = ("granularity", "group_size", "symmetric", "ranges")
    module["format"] = parse_name(module["format"]) | {name: module.pop(name) for name in moved if name in module}
    words = module.pop("activations", "")
    module["activations"] = parse_format(words) if isinstance(words, str) and words else None
    for old, new in (("levels", "distinct_values"), ("product", "gemm_kind")):
        if old in module:
            module[new] = module.pop(old)


def _upgrade_cache(cache: dict[str, Any]) -> None:
    for part in ("keys", "values"):
        words = cache[part]
        if match := _SKIPPED.fullmatch(words):
            cache["skipped_layers"] = [int(each) for each in match["layers"].split(",")]
            words = match["words"]
        cache[part] = parse_format(words)


def parse_name(name: str) -> dict[str, Any]:
    """Type, bits and element of a format by its name ("int4", "fp8_e4m3", "codebook4+sparse")."""
    for kind, pattern in _NAMES:
        if match := pattern.fullmatch(name):
            fields = match.groupdict()
            bits, sparse = int(fields["bits"] or fields["gguf_bits"]), bool(fields.get("sparse"))
            plain = name.removesuffix("+sparse") if sparse else name
            return {"type": kind, "bits": bits, "element": "" if plain == f"{kind}{bits}" else plain, "sparse": sparse}
    return {"type": "other", "element": name}


def parse_format(words: str) -> dict[str, Any]:
    """A format of inputs or of a KV cache ("int8 asymmetric per token, dynamic", "int4 affine per channel, …")."""
    match = _FORMAT.fullmatch(words)
    if match is None:
        return {"type": "other", "element": words}
    size = match["size"] or match["cells"] or match["groups"]
    return parse_name(match["name"]) | {
        "symmetric": {None: None, " symmetric": True}.get(match["grid"], False),
        "granularity": "head" if match["head"] else "group" if match["groups"] else match["unit"] or "none",
        "group_size": int(size) if size else None,
        "scales": "none" if match["unscaled"] else "",
        "dynamic": {"dynamic": True, "static": False}.get(match["when"]),
        "ranges": match["ranges"] or "",
        "percentile": float(match["percentile"]) if match["percentile"] else None,
        "outliers": float(match["outliers"]) if match["outliers"] else None,
    }
