"""What was compressed: the formats of all modules, grouped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness.records import ModuleFormat
from harness.report.summaries.layers import role_of
from harness.report.words import describe_format


@dataclass(frozen=True)
class FormatRow:
    """All modules stored in the same format."""

    words: str
    backend: str
    compressed: bool
    modules: int
    parameters: int
    stored_bytes: int
    roles: tuple[str, ...]

    @property
    def bits(self) -> float | None:
        """Stored bits per weight, scales and zero points included."""
        return 8 * self.stored_bytes / self.parameters if self.parameters else None


def formats(modules: Iterable[ModuleFormat]) -> list[FormatRow]:
    """Groups of modules of one format and backend: compressed ones first, then by parameters."""
    groups: dict[tuple[str, str], list[ModuleFormat]] = {}
    for module in modules:
        groups.setdefault((describe_format(module), module.backend), []).append(module)
    rows = [_format(words, backend, group) for (words, backend), group in groups.items()]
    return sorted(rows, key=lambda group: (not group.compressed, -group.parameters, group.words, group.backend))


def _format(words: str, backend: str, group: list[ModuleFormat]) -> FormatRow:
    return FormatRow(
        words=words,
        backend=backend,
        compressed=any(module.compressed for module in group),
        modules=len(group),
        parameters=sum(module.parameters for module in group),
        stored_bytes=sum(module.stored_bytes for module in group),
        roles=tuple(dict.fromkeys(role_of(module.module) for module in group)),
    )
