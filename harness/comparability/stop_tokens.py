"""The part ``stop_tokens``: which tokens end an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from harness.comparability import NotComparable, Part
from harness.comparability._sides import CONFIG, GENERATION, Json, Side, Sides
from harness.records import Difference


class StopTokens(Part):
    """Which tokens end an answer, as generation resolves them from generation_config.json and config.json."""

    title: ClassVar[str] = "the stop tokens"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        ours, theirs = (side.special_tokens.get("eos_token") for side in (sides.reference, sides.variant))
        if ours != theirs:
            yield Difference(
                part=self.kind,
                field="eos_token",
                reference=ours or "none",
                variant=theirs or "none",
                meaning="servers that stop at the tokenizer's end token stop elsewhere",
                severity="at_once",
            )
        if sides.reference.config is None or sides.variant.config is None:
            raise NotComparable("a model in a single file has no generation_config.json")
        yield from _ids(sides)


def _ids(sides: Sides) -> Iterator[Difference]:
    (one, where), (other, there) = resolve_stop_ids(sides.reference), resolve_stop_ids(sides.variant)
    if one == other:
        return
    lost, added = _name(sides.reference, one - other), _name(sides.variant, other - one)
    changes = [f"the variant no longer stops at {lost}"] if lost else []
    changes += [f"the variant also stops at {added}"] if added else []
    yield Difference(
        part="stop_tokens",
        field="eos_token_id",
        reference=f"{sorted(one)} ({where})",
        variant=f"{sorted(other)} ({there})",
        meaning=f"{'; '.join(changes)}: answers end elsewhere",
        severity="at_once",
    )


def resolve_stop_ids(side: Side) -> tuple[frozenset[int], str]:
    """The ids at which generation stops, and the file that says so, as transformers resolves them."""
    if side.generation is not None:
        return _read_stop_ids(side.generation), GENERATION
    config = side.config or {}
    inner = config.get("text_config")
    return _read_stop_ids(config) or _read_stop_ids(inner if isinstance(inner, dict) else {}), CONFIG


def _read_stop_ids(content: Json) -> frozenset[int]:
    value = content.get("eos_token_id")
    return frozenset(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))


def _name(side: Side, ids: frozenset[int]) -> str:
    return ", ".join(
        f"{number} ({side.token(number)!r})" if side.token(number) else str(number) for number in sorted(ids)
    )
