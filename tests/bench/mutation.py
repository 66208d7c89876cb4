"""Mutants of a file by the operators of Cosmic Ray, and the list of those that no test can notice."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import yaml

EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")

COMPARISONS = "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is"
BINARY = "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Div Mod_Mul Pow_Mul BitAnd_BitOr BitOr_BitAnd"
UNARY = "USub_UAdd Delete_Not Delete_Invert"
OTHERS = (
    "NumberReplacer AddNot ReplaceAndWithOr ReplaceOrWithAnd ReplaceTrueWithFalse ReplaceFalseWithTrue "
    "ReplaceBreakWithContinue ReplaceContinueWithBreak"
)
OPERATORS = (
    *(f"core/ReplaceComparisonOperator_{pair}" for pair in COMPARISONS.split()),
    *(f"core/ReplaceBinaryOperator_{pair}" for pair in BINARY.split()),
    *(f"core/ReplaceUnaryOperator_{pair}" for pair in UNARY.split()),
    *(f"core/{name}" for name in OTHERS.split()),
)
"""Comparisons at and beyond their boundary, signs, constants, conditions: the small mistakes a person makes."""


class Change(NamedTuple):
    """A mutant as equivalent_mutants.yaml names it: the file, and a line before and after, without space around it."""

    file: str
    line: str
    becomes: str


@dataclass(frozen=True)
class Mutant:
    """One change of a file below harness/: what an operator makes of one of the places that it can change.

    number, column: of that place. line: the text of its line, without the space around it. within: how many places
    of this line the operator can change before it. occurrence: the same for the file.
    """

    root: Path
    file: str
    number: int
    column: int
    line: str
    operator: str
    within: int
    occurrence: int

    @cached_property
    def source(self) -> str:
        """The text of the changed file."""
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        changed: str = mutate_code(_read(self.root / self.file), get_operator(self.operator)(), self.occurrence)
        return changed

    @cached_property
    def change(self) -> Change:
        old, new = _read(self.root / self.file).splitlines(), self.source.splitlines()
        last = len(new) - len(old) + self.number  # An operator may join or part the lines of what it changes.
        return Change(self.file, self.line, " ".join(" ".join(new[self.number - 1 : max(last, self.number)]).split()))


def list_mutants(root: Path, file: str) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    source = _read(root / file)
    lines, spans = source.splitlines(), list(_spans_that_decide_nothing(source))
    made = []
    for operator in OPERATORS:
        seen: Counter[int] = Counter()
        for occurrence, (number, column) in enumerate(_places(operator, source)):
            line = " ".join(lines[number - 1].split())
            if not any(start <= (number, column) < end for start, end in spans):
                made.append(Mutant(root, file, number, column, line, operator, seen[number], occurrence))
            seen[number] += 1
    return sorted(made, key=lambda mutant: (mutant.number, mutant.column, mutant.operator, mutant.occurrence))


def _places(name: str, source: str) -> Iterator[tuple[int, int]]:
    from cosmic_ray.ast import ast_nodes
    from cosmic_ray.plugins import get_operator

    operator = get_operator(name)()
    for node in ast_nodes(_parse(source)):
        yield from (start for start, _ in operator.mutation_positions(node))


@lru_cache
def _parse(source: str) -> Any:
    from cosmic_ray.ast import get_ast

    return get_ast(source)


@lru_cache
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _spans_that_decide_nothing(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations, decorators (``frozen=True``, the size of a cache) and imports for types begin and end."""
    for node in ast.walk(ast.parse(source)):
        nodes: list[ast.expr | ast.stmt | None] = []
        if isinstance(node, ast.AnnAssign | ast.arg):
            nodes = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            nodes = [node.returns, *node.decorator_list]
        elif isinstance(node, ast.ClassDef):
            nodes = [*node.decorator_list]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes = [node]
        for each in nodes:
            if each is not None and each.end_lineno is not None and each.end_col_offset is not None:
                yield (each.lineno, each.col_offset), (each.end_lineno, each.end_col_offset)


def read_equivalents() -> dict[Change, str]:
    """The mutants that no test can notice, and why."""
    entries = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8"))
    return {Change(e["file"], e["line"], e["becomes"]): e["because"] for e in entries}


class _Instead(importlib.abc.MetaPathFinder):
    """Finds one module, with another source than its file has."""

    def __init__(self, module: str, path: Path, source: str) -> None:
        self.module, self.path, self.source = module, path, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module:
            return None
        code = compile(self.source, str(self.path), "exec")

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                return code

        return importlib.util.spec_from_file_location(fullname, self.path, loader=Loader(fullname, str(self.path)))


def import_instead(path: Path, source: str) -> None:
    """From now on, importing the module of ``path`` runs ``source``. The module must not be imported yet."""
    parts = path.with_suffix("").parts
    module = ".".join(parts[parts.index("harness") :]).removesuffix(".__init__")
    assert module not in sys.modules, module
    sys.meta_path.insert(0, _Instead(module, path, source))
