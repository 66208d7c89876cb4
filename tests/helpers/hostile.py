"""Texts that a format, terminal or CI runner would take for more than text, and a run in which they are all names."""

from __future__ import annotations

from functools import cache
from typing import Any

from harness.records import Note, Run
from tests.helpers.made_run import Made, make_run

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)> <!-- --> ]]></failure><x y='1\">&amp;",
    "a" * 5_000,
    "\u202e\u2066gnp.exe\u2069 \u05d0\u05d1\u05d2 \u0645\u0631\u062d\u0628\u0627",
    "🦙💥👩‍👩‍👧 \ud83d",
    "one\n::set-output name=verdict::pass",
    "::error file=x,line=1::fake\r\n::add-mask::a",
    "##[error]x ##vso[task.complete result=Succeeded;]",
    "%0A::stop-commands::x%25",
    "=cmd|'/c calc'!A1",
    "+1+1", "-1-1", "@SUM(1)", "\t=1", "＝1",
    "| a | b |\n|---|---|\n# title\n* list `code` **bold** [link](javascript:alert(1)) ![x](http://e.invalid/x.png)",
    "@everyone #123 https://e.invalid www.e.invalid :tada: $x$ ~~gone~~ \\",
    "```\n</details></td></table>",
    "--> <!-- lm-shipcheck: other -->",
    "---\nmodel-index: []\n---\n- {a: &x *x} !!python/object: {{7*7}} {% x %}",
    "\x00\x01\x1b[31m\x7f\x85\u2028\ufffe\uffff",
    "hf_" + "a" * 30,
    "",
)  # fmt: skip
PLAIN = "plain"


def rename_everything(text: str, verdict: str = "fail") -> Run:
    """A small run in which every free text is ``text``: names, labels, reasons, notes, places, units, settings."""
    run = small(verdict).run
    judged = tuple(
        each.model_copy(
            update=dict.fromkeys(("rule", "metric", "expected", "found", "because", "reason", "where", "why"), text)
            | {"gate": "gate", "labels": {"label": text}}
        )
        for each in run.verdicts
    )
    update: dict[str, Any] = {
        "name": text,
        "data_key": text,
        "verdicts": judged,
        "notes": (Note(topic=text, text=text, level="warn"),),
        "warnings": 1,
        "asked": {"source": text, "variant": {"compress": [{"backend": text, "x": text}]}},
        "reference": run.reference.model_copy(update={"name": text, "source": text}),
        "variant": run.variant.model_copy(update={"name": text, "source": text}),
        "measurements": tuple(
            m.model_copy(update={"method": text, "unit": text, "labels": {"label": text}}) for m in run.measurements
        ),
    }
    return run.model_copy(update=update)


@cache
def small(verdict: str = "fail") -> Made:
    """A made-up run that is quick to write."""
    return make_run(verdict, documents=14, length=30, layers=2, items=40)
