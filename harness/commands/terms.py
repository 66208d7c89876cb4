"""The terms that ``harness list --terms`` explains; they stand in ``terms.yaml`` beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from harness.commands.catalogue import catalogue_table
from harness.errors import PlanError, Problem
from harness.system.yaml_file import read_yaml

TERMS = Path(__file__).with_name("terms.yaml")


def read_terms() -> Mapping[str, Mapping[str, str]]:
    """Topic to term to its meaning, in the order of the file."""
    problems: list[Problem] = []
    parsed = read_yaml(TERMS, problems)
    if parsed is None or problems:
        raise PlanError(problems)
    return {topic: terms for topic, terms in parsed.data.items() if topic != "description"}


def print_terms() -> None:
    """Print every term with its meaning, by topic."""
    console = Console()
    for topic, terms in read_terms().items():
        console.print(catalogue_table(topic, list(terms.items())))
