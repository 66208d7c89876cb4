"""Edits of a tree (JSON, YAML) or of bytes: plain data, so that what a fuzzer found can be kept as a file.

{"at": ["rules", 0, "limit"], "put": 2}      replace a value, or add a key
{"at": ["rules", 0], "insert": {}}           insert before an item of a list
{"at": ["rules", 0, "why"], "delete": true}
{"at": ["rules", 0, "why"], "rename": "wy"}
{"offset": 17, "remove": 4, "insert": "00ff"}
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Edit = dict[str, Any]
CORPUS = Path(__file__).parent / "corpus"

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**32, -(2**31), 2**63, 2**64, 10**400, 0.0, -0.0, 0.5, 1e-3, 5e-324,
    1e308, -1e308, float("nan"), float("inf"), float("-inf"), "", " ", "x", "*", "**", ".", "..", "../x", "/etc/passwd",
    "/", "a/b.yaml", "x\0y", "\ud800", "\u202e", "\x1b[31m", "x" * 300, "é" * 5000, "nan", "inf", "1e-2", "true",
    "<script>alert(1)</script>", "]]>", "::error::x", "##vso[task.complete]", "=1+1", "{{ 7 * 7 }}", "{% for x in y %}",
    "(a+)+$", "[", "%s%n", "kind=*", "pocket", "sampled", "counted", "lower", "higher", "neither", "variant", "point",
    "2026-11-29", [], {}, [[]], [None], {"": None}, {"x": {"x": {"x": []}}}, ["x"] * 50,
)  # fmt: skip
"""Values that parsers, formats and arithmetic stumble over."""


def nested(depth: int) -> Any:
    """A list in a list in a list …"""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below the root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def value_at(tree: Any, at: Sequence[Any]) -> Any:
    for key in at:
        tree = tree[key]
    return tree


def edit_tree(tree: Any, edits: Sequence[Edit]) -> Any:
    """A copy of the tree after the edits."""
    tree = copy.deepcopy(tree)
    for edit in edits:
        *above, key = edit["at"]
        parent = value_at(tree, above)
        if "put" in edit:
            parent[key] = copy.deepcopy(edit["put"])
        elif "insert" in edit:
            parent.insert(key, copy.deepcopy(edit["insert"]))
        elif "rename" in edit:
            parent[edit["rename"]] = parent.pop(key)
        else:
            del parent[key]
    return tree


def edit_bytes(data: bytes, edits: Sequence[Edit]) -> bytes:
    for edit in edits:
        offset = edit["offset"]
        data = data[:offset] + bytes.fromhex(edit["insert"]) + data[offset + edit["remove"] :]
    return data


def tree_edits(tree: Any, most: int = 3) -> st.SearchStrategy[list[Edit]]:
    """One to ``most`` edits, each of the tree that the ones before left."""

    @st.composite
    def several(draw: st.DrawFn) -> list[Edit]:
        edits: list[Edit] = []
        left = tree
        for _ in range(draw(st.integers(1, most))):
            if known := list(places(left)):
                edits.append(draw(_tree_edit(left, known)))
                left = edit_tree(left, edits[-1:])
        return edits

    return several()


@st.composite
def _tree_edit(draw: st.DrawFn, tree: Any, known: list[tuple[Any, ...]]) -> Edit:
    at = draw(st.sampled_from(known))
    value, in_list = value_at(tree, at), isinstance(at[-1], int)
    how = draw(st.sampled_from(["put", "put", "near", "near", "copy", "delete", "deep", "more"]))
    if how == "delete":
        return {"at": list(at), "delete": True}
    if how == "near":
        return {"at": list(at), "put": draw(_near(value))}
    if how == "copy":
        return {"at": list(at), "put": copy.deepcopy(value_at(tree, draw(st.sampled_from(known))))}
    if how == "deep":
        return {"at": list(at), "put": nested(draw(st.sampled_from([30, 100])))}
    if how == "more" and in_list:
        return {"at": list(at), "insert": copy.deepcopy(value)}
    if how == "more":
        return {
            "at": list(at),
            "rename": draw(st.sampled_from(["", "x", f"{at[-1]}s", str(at[-1])[:-1], "why", "name"])),
        }
    return {"at": list(at), "put": draw(st.sampled_from(HOSTILE))}


def _near(value: Any) -> st.SearchStrategy[Any]:
    """Values of the same type, which get further than those of another one."""
    if isinstance(value, bool) or value is None:
        return st.sampled_from([True, False, None])
    if isinstance(value, int):
        half = value / 2 if abs(value) < 2**1000 else value // 2  # edits on edits grow beyond every float
        return st.sampled_from([value + 1, value - 1, -value, value * 2, value * 1000, half, 0, 1, 2, 3])
    if isinstance(value, float):
        return st.sampled_from([-value, value * 2, value / 2, value * 1e6, 1 - value, 0.0, 1.0, 5e-324, 1e300])
    if isinstance(value, str):
        return st.sampled_from(
            [f"{value}x", value[:-1], value.upper(), f" {value}", f"{value}\n", f"{value}*", value * 9]
        )
    if isinstance(value, list):
        return st.sampled_from([value[:-1], value[::-1], [*value, *value], [value], []])
    return st.sampled_from([{}, [value], list(value), {**value, "x": 1}])


def byte_edits(data: bytes, first: int | None = None, most: int = 4) -> st.SearchStrategy[list[Edit]]:
    """Flipped bits, other, more and missing bytes among the ``first`` ones (default: all); or the rest cut off."""

    @st.composite
    def several(draw: st.DrawFn) -> list[Edit]:
        edits: list[Edit] = []
        left = data
        for _ in range(draw(st.integers(1, most))):
            offset = draw(st.integers(0, max(0, min(len(left), first or len(left)) - 1)))
            edits.append(draw(_byte_edit(left, offset)))
            left = edit_bytes(left, edits[-1:])
        return edits

    return several()


@st.composite
def _byte_edit(draw: st.DrawFn, data: bytes, offset: int) -> Edit:
    how = draw(st.sampled_from(["bit", "bit", "bytes", "insert", "delete", "cut", "copy"]))
    if how == "bit":
        flipped = (data[offset] if data else 0) ^ (1 << draw(st.integers(0, 7)))
        return {"offset": offset, "remove": 1, "insert": f"{flipped:02x}"}
    if how == "cut":
        return {"offset": offset, "remove": len(data), "insert": ""}
    if how == "copy":
        start = draw(st.integers(0, max(0, len(data) - 1)))
        return {"offset": offset, "remove": 0, "insert": data[start : start + draw(st.integers(1, 64))].hex()}
    inserted = draw(
        st.one_of(st.binary(max_size=9), st.sampled_from([b"\xff" * 8, b"\0" * 8, b'"', b"{", b"[", b"\n", b"-"]))
    )
    removed = {"bytes": len(inserted), "insert": 0}.get(how, draw(st.integers(1, 16)))
    return {"offset": offset, "remove": removed, "insert": "" if how == "delete" else inserted.hex()}


def kept(name: str) -> dict[str, list[Edit]]:
    """The edits in the corpus folder ``name``, by the name of their file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((CORPUS / name).glob("*.json"))}
