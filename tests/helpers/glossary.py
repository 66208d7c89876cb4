"""The page .github/GLOSSARY.md, made of harness/commands/terms.yaml.

python tests/helpers/glossary.py      writes it
"""

from __future__ import annotations

from pathlib import Path

from harness.commands.terms import read_terms

PAGE = Path(__file__).parents[2] / ".github" / "GLOSSARY.md"


def glossary() -> str:
    """The page: a table for every topic."""
    lines = ["# Glossary", "", "One standard term for each concept; the same list as `harness list --terms`. Made by"]
    lines += ["`python tests/helpers/glossary.py` of `harness/commands/terms.yaml`."]
    for topic, terms in read_terms().items():
        lines += ["", f"## {topic.capitalize()}", "", "| term | meaning |", "|---|---|"]
        lines += [f"| **{term}** | {meaning} |" for term, meaning in terms.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(glossary(), encoding="utf-8")
