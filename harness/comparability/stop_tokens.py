"""The part ``stop_tokens``: which tokens end an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from harness.comparability import NotComparable, Part
from harness.comparability._common.sides import CONFIG, GENERATION, Json, Side, Sides
from harness.records import Difference


class StopTokens(Part):
    """Which tokens end an answer, as generation resolves them from generation_config.json and config.json."""

    title: ClassVar[str] = "the stop tokens"

    def compare(self, sides: Sides) -> Iterator[Difference]:
        """See Part.compare."""
        ours, theirs = (side.special_tokens.get("eos_token") for side in (sides.reference, sides.variant))
        if ours != theirs and not any(side.header for side in (sides.reference, sides.variant)):
            yield Difference(
                part=self.kind,
                field="eos_token",
                reference=ours or "none",
                variant=theirs or "none",
                meaning="servers that stop at the tokenizer's end token stop elsewhere",
                severity="at_once",
            )
        yield from _compare_ids(sides)


@dataclass(frozen=True)
class StopIds:
    """The ids at which generation stops. also: those that an engine stops at by their names. where: the file."""

    stated: frozenset[int]
    where: str
    also: frozenset[int] = frozenset()


def _compare_ids(sides: Sides) -> Iterator[Difference]:
    one, other = resolve_stop_ids(sides.reference), resolve_stop_ids(sides.variant)
    lost, added = one.stated - other.stated - other.also, other.stated - one.stated - one.also
    changes = [f"the variant no longer stops at {_name(sides.reference, lost)}"] if lost else []
    changes += [f"the variant also stops at {_name(sides.variant, added)}"] if added else []
    if changes:
        yield Difference(
            part="stop_tokens",
            field="eos_token_id",
            reference=f"{sorted(one.stated)} ({one.where})",
            variant=f"{sorted(other.stated)} ({other.where})",
            meaning=f"{'; '.join(changes)}: answers end elsewhere",
            severity="at_once",
        )


def resolve_stop_ids(side: Side) -> StopIds:
    """Where generation stops, as transformers resolves it of a folder, and llama.cpp of the header of a file.

    Raises NotComparable for a single file without header.
    """
    if side.header is not None:
        return StopIds(side.header.stop_ids, "its header", side.header.known_ends)
    if side.config is None:
        raise NotComparable("a model in a single file has no generation_config.json")
    if side.generation is not None:
        return StopIds(_read_stop_ids(side.generation), GENERATION)
    inner = side.config.get("text_config")
    return StopIds(_read_stop_ids(side.config) or _read_stop_ids(inner if isinstance(inner, dict) else {}), CONFIG)


def _read_stop_ids(content: Json) -> frozenset[int]:
    value = content.get("eos_token_id")
    return frozenset(each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))


def _name(side: Side, ids: frozenset[int]) -> str:
    return ", ".join(
        f"{number} ({side.token(number)!r})" if side.token(number) else str(number) for number in sorted(ids)
    )
