"""The report of a large run stays a file that opens, and shows every rule that it must."""

from __future__ import annotations

from harness.system import resources
from harness.writers.report_html import render
from tests.bench.large_report import BUDGET_BYTES, RULES, make_large_run, make_mixture_run


def test_a_large_run_stays_within_its_size() -> None:
    made = make_large_run(documents=500)
    text = render(made.run, made.tables, resources.folder("reports"))
    assert len(text.encode()) < BUDGET_BYTES
    passed = sum(verdict.status == "pass" for verdict in made.run.verdicts)
    assert text.count('<details class="passed"') == 4
    rules = text.partition('<section id="rules"')[2].partition("</section>")[0]
    assert rules.count('<th scope="row"') + rules.count('<li class="rule ') == min(RULES, passed + 40 + 200)
    assert "200 blocks" in text


def test_a_large_mixture_shows_every_layer_and_expert() -> None:
    made = make_mixture_run()
    text = render(made.run, made.tables, resources.folder("reports"))
    assert len(text.encode()) < BUDGET_BYTES
    assert text.count(".mlp.experts.63.") == 100, "rows of the map"
    assert text.count('title="model.layers.99.') >= 7
