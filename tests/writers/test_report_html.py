"""The report: the same bytes each time, harmless whatever names it shows, bounded, honest about what is missing.

The golden file is made anew with:  UPDATE_GOLDEN=1 pytest tests/writers/test_report_html.py -k golden
Look at the difference in a browser before it is committed.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from harness.errors import FailureClass, TableError, WriteError
from harness.records import Basis, Measurement, ModuleFormat, Note, Run, Skipped, Verdict
from harness.records.comparison import Comparable, Severity
from harness.records.metric import ChanceLevel, SpreadFamily, Summary
from harness.report.rules import prepare_verdicts
from harness.system import resources
from harness.terminal import Terminal
from harness.write import encode, read_run
from harness.writers.report_html import ReportHtml, content_hash, render
from tests.helpers.made_run import Made, make_run
from tests.helpers.made_tables import MadeTables
from tests.helpers.number_formats import named

GOLDEN = Path(__file__).parents[1] / "golden" / "report.html"
TEMPLATES = resources.folder("reports")
SCRIPT = (TEMPLATES / "script.js").read_text(encoding="utf-8")


def html(made: Made) -> str:
    return render(made.run, made.tables, TEMPLATES)


def changed(made: Made, **fields: Any) -> Made:
    return Made(made.run.model_copy(update=fields), made.tables)


def visible(text: str) -> str:
    """What a reader sees, in one line."""
    without = re.sub(
        r"<style>.*?</style>|<script>.*?</script>|<desc>.*?</desc>|<title>.*?</title>", " ", text, flags=re.S
    )
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))


class Tags(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute stands twice in <{tag}>"
        self.found.append((tag, dict(attrs)))


def test_golden_file() -> None:
    """A small run gives exactly the report that was looked at and approved."""
    text = html(make_run("fail", documents=14, length=30, layers=2, items=40))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_same_run_gives_the_same_bytes(made: dict[str, Made], tmp_path: Path) -> None:
    paths = [ReportHtml().write(made["fail"].run, made["fail"].tables, tmp_path / name) for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0] == tmp_path / "a" / "report.html"


def test_a_run_that_was_read_back_gives_the_same_report(
    made: dict[str, Made], pages: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_bytes(encode(made["fail"].run))
    assert html(Made(read_run(tmp_path), made["fail"].tables)) == pages["fail"]


@pytest.mark.parametrize(
    ("verdict", "headline", "reason"),
    [
        ("pass", "May ship", "All 5 blocking rules passed."),
        ("fail", "Must not ship", "4 of 5 blocking rules failed: perplexity ratio (1.09, limit 1.02)"),
        ("inconclusive", "Undecided", "Nothing failed, but 1 of 5 blocking rules is inconclusive"),
        ("error", "Could not be judged", "have other token ids under the variant's tokenizer"),
    ],
)
def test_the_verdict_opens_the_report(pages: dict[str, str], verdict: str, headline: str, reason: str) -> None:
    text = pages[verdict]
    assert re.search(rf'<h1 id="verdict-title">{headline}</h1>', text)
    assert reason in visible(text).replace("&#39;", "'")


def test_every_section_has_its_heading_and_its_place_in_the_list(pages: dict[str, str]) -> None:
    text = pages["fail"]
    anchors = re.findall(r'<section id="([a-z]+)"', text)
    assert anchors == [
        "verdict", "rules", "cause", "predictions", "tasks", "generation", "perplexity", "outliers", "cost", "formats",
        "artifact", "checklist", "comparability", "measurements", "reproduce",
    ]  # fmt: skip
    for anchor in anchors:
        assert f'<a href="#{anchor}">' in text
        assert f'id="{anchor}-title"' in text


def test_a_section_is_one_new_file(made: dict[str, Made], tmp_path: Path) -> None:
    templates = tmp_path / "reports"
    shutil.copytree(TEMPLATES, templates)
    own = '{% set title = "Energy" %}{% macro body() %}<p>{{ run.name }} used {{ 41 + 1 }} J</p>{% endmacro %}'
    (templates / "sections" / "65_energy.html").write_text(own)
    text = render(made["pass"].run, made["pass"].tables, templates)
    assert "pocket-w4-g32 used 42 J" in text
    assert text.index('id="outliers"') < text.index('id="energy"') < text.index('id="cost"')


@pytest.mark.parametrize("mistake", ["{{ run.nme }}", "{{ nothing }}", "{% macro body() %}", "{{ 1 / 0 }}"])
def test_a_template_that_fails_is_named(made: dict[str, Made], tmp_path: Path, mistake: str) -> None:
    templates = tmp_path / "reports"
    shutil.copytree(TEMPLATES, templates)
    (templates / "sections" / "65_energy.html").write_text(mistake)
    with pytest.raises(WriteError, match="65_energy"):
        render(made["pass"].run, made["pass"].tables, templates)


# Rules: what is shown must not differ from what was compared.


def test_what_disturbed_the_times_is_said_beside_them(made: dict[str, Made], pages: dict[str, str]) -> None:
    found = [
        m.model_copy(update={"disturbed": "swapping"}) if m.name.startswith("latency.") else m
        for m in made["pass"].run.measurements
    ]
    said = "While the times were taken, the operating system counted swapping"
    assert html(changed(made["pass"], measurements=tuple(found))).count(said) == 1
    assert said not in pages["pass"]


def test_a_number_near_its_limit_is_never_rounded_onto_it(made: dict[str, Made]) -> None:
    metric = Measurement(
        name="divergence.top1_agreement", unit="share", better="higher", neutral=1.0, change=0.94999996,
        low=0.9499, high=0.9500002, n=9, clusters=3, basis="sampled", method="made",
    )  # fmt: skip
    rule = {"rule": "at_least", "metric": metric.name, "limit": 0.95, "why": "w", "where": "g.yaml:1"}
    verdict = Verdict(
        gate="g", rule="at_least", metric=metric.name, status="inconclusive", expected="at least 0.95",
        found="0.94999996", because="it reaches over", level="block", where="g.yaml:1",
    )  # fmt: skip
    asked = made["pass"].run.asked | {"gates": [{"rules": [rule]}]}
    made_ = changed(made["inconclusive"], measurements=(metric,), verdicts=(verdict,), asked=asked)
    text = html(made_)
    assert "(94.999996 %, limit 95 %)" in visible(text)
    assert ">94.999996</text>" in text
    assert 'title="0.94999996"' in text


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_report_and_terminal_write_the_same_numbers(made: dict[str, Made], pages: dict[str, str], verdict: str) -> None:
    text = html_text(pages[verdict])
    out = io.StringIO()
    Terminal(Console(file=out, width=400)).verdict(made[verdict].run)
    written = [item for item in prepare_verdicts(made[verdict].run) if item.limit]
    assert len(written) >= 2
    for item in written:
        assert f"{item.estimate}, limit {item.limit}" in out.getvalue()
        assert item.estimate in text
        assert f" {item.limit} " in text
        assert re.search(r" (pp|%)", item.limit)
        assert f", in {item.estimate.partition(',')[0].partition(' ')[2]}: " in pages[verdict]
    named = [item.numbers for item in written if item.verdict.status == made[verdict].run.verdict != "pass"]
    assert all(f"({numbers})" in text and f"({numbers})" in out.getvalue() for numbers in named[:1])


def html_text(page: str) -> str:
    return visible(page).replace("&#39;", "'").replace("&lt;", "<")


def test_the_drawing_shows_what_was_judged(made: dict[str, Made], pages: dict[str, str]) -> None:
    """The limit of not_worse lies at neutral + margin, and the interval is that of the measurement."""
    text = pages["fail"]
    described = re.findall(r"<desc>measured ([^<]*)</desc>", text)
    assert len(described) == len(made["fail"].run.verdicts)
    ratio = next(m for m in made["fail"].run.measurements if m.name == "perplexity.ratio")
    assert (
        described[0] == f"{ratio.change:.2f}, interval {ratio.low:.2f} to {ratio.high:.2f}; limit 1.02, passes below it"
    )


def test_an_error_shows_no_number_as_if_it_had_been_compared(made: dict[str, Made]) -> None:
    first, *others = made["fail"].run.verdicts
    unfit = first.model_copy(update={"status": "error", "because": "the rule does not fit the metric"})
    text = html(changed(made["fail"], verdicts=(unfit, *others)))
    card = text[text.index('<li class="rule error">') :].partition("</li>")[0]
    assert "the rule does not fit the metric" in card
    assert "<svg" not in card


@pytest.mark.parametrize("section", ["predictions", "tasks", "perplexity", "outliers", "measurements"])
def test_numbers_at_reading_precision_say_all_their_digits(pages: dict[str, str], section: str) -> None:
    shown = pages["fail"].partition(f'<section id="{section}"')[2].partition("</section>")[0]
    cells = re.findall(r'<td class="n"( title="([^"]*)")?>([^<]*\d\.\d[^<]*)</td>', shown)
    assert len(cells) > 3
    assert [text for _, full, text in cells if not full] == []
    assert all(np.isfinite(float(full)) for _, full, _ in cells)
    assert section == "tasks" or any(len(full) > 8 for _, full, _ in cells)


# Hostile content: names come from files that others wrote.

PAYLOAD = (
    '"></title></style></svg></script><script>alert(1)</script><img src=x onerror=alert(1)>'
    "<a href='javascript:alert(2)'>{{ 7 * 7 }}{% raw %}</a><!-- ' onload=alert(3) style=color:red "
    "\x1b[31m\u202e\u2028 hf_aaaaaaaaaaaaaaaaaaaaaaaa /home/somebody/models"
)
LITERALS = {
    *(
        "pass",
        "fail",
        "inconclusive",
        "error",
        "skipped",
        "block",
        "warn",
        "info",
        "lower",
        "higher",
        "neither",
    ),
    *("linear", "head", "embedding", "norm", "other", "codes", "floats", "", "saved", "checkpoint"),
    *(*get_args(Basis), *get_args(SpreadFamily), *get_args(ChanceLevel), *get_args(Summary)),
    *("reference", "variant", "real", "simulated", "none", "tensor", "channel", "group", "block", "token"),
    *("int", "float", "codebook", "e8m0", "e4m3", "double"),
    *(*get_args(Severity), *get_args(Comparable), "artifact"),
    *get_args(FailureClass),
}


def poisoned(value: Any) -> Any:
    """Every text in a record, keys too, with the payload behind it."""
    if isinstance(value, str):
        return value if value in LITERALS else value + PAYLOAD
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    return tuple(poisoned(item) for item in value) if isinstance(value, list | tuple) else value


def poisoned_cell(value: Any) -> Any:
    return [each + PAYLOAD for each in value] if isinstance(value, list) else f"{value}{PAYLOAD}"


def hostile(made: Made) -> Made:
    content = made.run.model_dump()
    bad = {key: poisoned(value) for key, value in content.items()}
    bad["environment"]["packages"] = {"numpy" + PAYLOAD: PAYLOAD}
    bad["clock"]["seconds"] = {"pass" + PAYLOAD: 1.0}
    for measurement in bad["measurements"]:
        measurement["labels"] = {"module" + PAYLOAD: PAYLOAD}
    for module in (
        *bad["reference"]["modules"],
        *bad["variant"]["modules"],
        {"format": bad["variant"]["cache"]["keys"]},
    ):
        for form in filter(None, (module["format"], module.get("activations"))):
            form["element"] = "int4" + PAYLOAD
    frames = {}
    for name, frame in made.tables.frames.items():
        texts = [column for column in frame.columns if frame[column].dtype.kind in "OUT"]
        keep = {"side", "better", "reference_loglikelihoods", "variant_loglikelihoods"}
        keep |= {"kind"} if name == "layers" else set()
        frames[name] = frame.assign(**{c: frame[c].map(poisoned_cell) for c in texts if c not in keep})
    return Made(Run.model_validate(bad), MadeTables(frames, "core" + PAYLOAD))


@pytest.fixture(scope="module")
def attacked() -> str:
    return html(hostile(make_run("fail", documents=20, length=20)))


def test_hostile_names_reach_every_section_that_shows_names(attacked: str) -> None:
    sections = attacked.split("<section ")[1:]
    free = [section.partition('"')[2].partition('"')[0] for section in sections if "alert(1)" not in section]
    assert free == ["predictions"]


def test_hostile_names_never_become_markup(attacked: str) -> None:
    harmless = {tag for tag, _ in Tags(html(make_run("fail", documents=20, length=20))).found}
    assert {tag for tag, _ in Tags(attacked).found} == harmless
    assert harmless.isdisjoint({"img", "iframe", "object", "embed", "link", "form", "base", "foreignobject"})
    assert attacked.count("<style>") == attacked.count("</style>") == 1
    assert attacked.count("<script") == attacked.count("</script") == 1
    assert attacked.partition("<script>")[2].partition("</script>")[0] == SCRIPT
    assert "{{ 7 * 7 }}" in attacked.replace("&#39;", "'")


def test_nothing_in_the_page_acts_or_leads_elsewhere(attacked: str) -> None:
    for tag, attributes in Tags(attacked).found:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in {"style", "src", "srcset", "action", "formaction", "xlink:href", "srcdoc"}, (
                tag,
                name,
            )
            if name == "href":
                assert value is not None
                assert re.fullmatch(r"#[a-z]+", value), value


def test_control_characters_and_secrets_are_not_in_the_page(attacked: str) -> None:
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\u2028]", attacked)
    assert "hf_aaaa" not in attacked
    assert "/home/somebody" not in attacked
    assert r"\x1b[31m\u202e" in attacked


@pytest.mark.parametrize("verdict", ["pass", "error"])
def test_the_policy_allows_the_style_sheet_and_the_script_and_nothing_else(pages: dict[str, str], verdict: str) -> None:
    text = pages[verdict]
    style = text.partition("<style>")[2].partition("</style>")[0]
    policies = [
        attributes["content"]
        for tag, attributes in Tags(text).found
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    allowed = f"style-src 'sha256-{content_hash(style)}'; script-src 'sha256-{content_hash(SCRIPT)}'"
    assert policies == [f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"]
    assert re.findall("<script.*?</script>", text, flags=re.S) == [f"<script>{SCRIPT}</script>"]
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert "@import" not in style
    assert "url(" not in style


def test_the_script_loads_nothing_and_keeps_nothing() -> None:
    assert not set(SCRIPT) & set("\u2028\u2029")
    for word in (
        "fetch",
        "XMLHttpRequest",
        "import",
        "eval",
        "innerHTML",
        "localStorage",
        "cookie",
        "</",
        "<!--",
        "http",
    ):
        assert word not in SCRIPT, word


# Bounds: however large the run, the page stays one that opens.


def huge() -> Made:
    """100 000 documents and module outputs, 20 000 measurements, thousands of rules, names of a megabyte."""
    small, many = make_run("fail", documents=10, length=10), 100_000
    names = [f"model.layers.{k // 100}.mlp.experts.{k % 100}.down_proj" for k in range(20_000)] * 5
    ones = np.ones(many)
    layers = pd.DataFrame(
        {
            "document": np.arange(many) // 20_000, "module": names, "kind": "linear", "depth": np.arange(many),
            "sum_squared_error": np.linspace(0, 1, many), "sum_squared_reference": ones,
            "sum_squared_variant": ones, "dot": ones,
        }
    )  # fmt: skip
    channels = pd.DataFrame({"side": "reference", "module": names, "channel": 0, "max_abs": ones})
    documents = pd.DataFrame({"document": np.arange(many), "id": names, "kind": [f"kind {k}" for k in range(many)]})
    tokens = pd.concat([small.tables.frames["tokens"]] * 1000, ignore_index=True).iloc[:many]
    tokens = tokens.assign(document=np.arange(many, dtype=np.int32))
    item = small.tables.frames["items"].iloc[:100]
    items = pd.concat([item.assign(task=f"task {k} " + "x" * 1000) for k in range(200)], ignore_index=True)
    items.loc[::500, "target"] = "y" * 1_000_000
    frames = {
        "layers": layers,
        "channels": channels,
        "documents": documents,
        "tokens": tokens,
        "items": items,
    }
    one = small.run.measurements[0]
    measurements = tuple(
        one.model_copy(update={"name": f"layers.m{k % 300}", "labels": {"module": names[k]}}) for k in range(20_000)
    )
    module = small.run.variant.modules[1]
    modules = tuple(
        module.model_copy(update={"module": name, "format": named(f"int{k % 500 + 1}")})
        for k, name in enumerate(names[:20_000])
    )
    run = small.run.model_copy(
        update={
            "name": "n" * 1_000_000,
            "measurements": measurements,
            "verdicts": small.run.verdicts * 1000,
            "skipped": tuple(Skipped(measure=f"m{k}", reason="r" * 5000) for k in range(5000)),
            "notes": tuple(Note(topic="t", text="x" * 5000, level="warn") for _ in range(5000)),
            "asked": {"list": list(range(50_000)), "long": "z" * 1_000_000},
            "variant": small.run.variant.model_copy(update={"modules": modules}),
            "environment": small.run.environment.model_copy(update={"packages": {f"p{k}": "1" for k in range(5000)}}),
        }
    )
    return Made(run, MadeTables(frames))


def test_the_page_stays_below_five_megabytes_however_large_the_run() -> None:
    text = html(huge())
    assert len(text.encode()) < 5_000_000
    assert text.count("<tr") < 3000
    assert "more rows are in <code>run.json</code>" in text
    assert "further verdicts are in <code>run.json</code>" in text


# Absence: every section says what it lacks.


def without(made: Made, *tables: str) -> Made:
    return Made(made.run, MadeTables({k: v for k, v in made.tables.frames.items() if k not in tables}))


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("token_texts", "This run recorded no texts of tokens"),
        ("layers", "Layer outputs were not recorded"),
        ("tokens", "No tokens were compared"),
        ("channels", "Input channels were not recorded"),
        ("items", "No tasks were run"),
    ],
)
def test_a_missing_table_becomes_a_sentence(
    made: dict[str, Made], pages: dict[str, str], table: str, sentence: str
) -> None:
    assert sentence not in pages["fail"]
    assert sentence in html(without(made["fail"], table))


def test_documents_without_names_are_numbered(made: dict[str, Made]) -> None:
    assert "Documents by mean KL" in html(without(made["fail"], "documents"))


def test_an_empty_run_is_still_a_report(made: dict[str, Made]) -> None:
    bare = changed(
        made["error"], measurements=(), verdicts=(), skipped=(), notes=(), asked={},
        variant=made["error"].run.variant.model_copy(update={"modules": ()}),
    )  # fmt: skip
    text = visible(html(Made(bare.run, MadeTables({}))))
    assert "No blocking rule was judged" in text
    assert "This run has no tables" in text
    assert "Nothing was measured." in text
    assert "Memory was not measured." in text


class Damaged:
    """Tables of which one cannot be read."""

    def __init__(self, whole: MadeTables, broken: str) -> None:
        self.whole, self.broken = whole, broken

    def suites(self) -> tuple[str, ...]:
        return self.whole.suites()

    def read(self, suite: str, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
        if table == self.broken:
            raise TableError(f"{table}/3.parquet: the file is damaged")
        return self.whole.read(suite, table, columns)


@pytest.mark.parametrize("table", ["layers", "tokens", "token_texts", "documents", "channels", "items", "item_texts"])
def test_a_damaged_table_costs_its_charts_not_the_report(made: dict[str, Made], table: str) -> None:
    text = render(made["fail"].run, Damaged(made["fail"].tables, table), TEMPLATES)
    assert f"{table}/3.parquet: the file is damaged" in text
    assert "Must not ship" in text
    assert "No tasks were run" not in text
    assert "were not recorded" not in text


# The cause: text and picture name the same thing by the same measure.


def test_what_is_called_largest_is_largest_in_its_picture(pages: dict[str, str]) -> None:
    cause = pages["fail"].partition('<section id="cause"')[2].partition("</section>")[0]
    block, error = re.findall(r"is largest after block (\d+) \(([^)]+)\)", cause)[0]
    assert f"largest relative error {error} after block {block}" in cause
    kind, kl = re.findall(r"mean KL is largest in <strong>(\w+)</strong>, ([\d.]+) nats", cause)[0]
    assert re.findall(r"<title>(\w+): ([\d.]+) nats per token \([\d.]+\)</title>", cause)[0] == (kind, kl)
    worst = cause.partition("ten modules with the largest error")[2].partition("</table>")[0]
    module, listed = re.findall(
        r'<th scope="row"><code>([\w.]+)</code></th><td>linear</td><td class="n"[^>]*>([^<]+)<', worst
    )[0]
    squares = re.findall(r'<td class="h\d" title="([\w.]+): ([\d.]+).% \(([\d.e-]+)\)"', cause)
    worst_module, largest, _ = max(squares, key=lambda each: float(each[2]))
    assert (module, listed) == (worst_module, f"{largest}\u202f%")
    last = re.findall(r"After the last block the error of ([\d.]+).% is a gain of <strong>(\S+) %</strong>", cause)
    assert len(last) == 1
    assert float(last[0][1].replace("−", "-")) < float(last[0][0])


# Texts of documents: readable, harmless, and left out on request.


def test_tokens_and_answers_are_texts_and_not_ids(pages: dict[str, str]) -> None:
    text = visible(pages["fail"]).replace("&lt;", "<").replace("&gt;", ">")
    assert re.search(r"\S+ \w+ document \d+, token \d+ ", text)
    assert re.search(r"\S+ fell from [\d.]+.% to \S+.% \(−[\d.]+ nats\); most likely was ", text)
    assert re.search(r"right answer [abcd] reference ✓ right [abcd] variant ✕ wrong [abcd]", text)
    assert re.search(r"Lead of the right answer over the best other one: \+[\d.]+ → −[\d.]+ nats", text)
    assert "Who has number" in text


def test_colour_is_not_the_only_sign_of_a_loss(pages: dict[str, str]) -> None:
    style = (TEMPLATES / "style.css").read_text()
    lines = re.findall(r"\.loss\d \{[^}]*border-bottom: ([^;]+);", style)
    assert len(set(lines)) == 5
    tokens = [attributes for tag, attributes in Tags(pages["fail"]).found if "token" in (attributes.get("class") or "")]
    shaded = [each for each in tokens if "loss" in (each["class"] or "")]
    assert shaded
    assert all("nats" in (each.get("title") or "") for each in shaded if each["class"] != "token worst")


def test_a_tokenizer_that_cannot_decode_is_said_and_ids_stand_instead(made: dict[str, Made]) -> None:
    table = made["fail"].tables.frames["token_texts"]
    none, some = table.assign(text=""), table.assign(text=table["text"].where(table["id"] % 2 == 0, ""))
    said = visible(html(Made(made["fail"].run, MadeTables(made["fail"].tables.frames | {"token_texts": none}))))
    assert "could not decode any token, so tokens are shown as ids" in said
    assert re.search(r"\d id \d+ [\d.]+ ", said)
    said = visible(html(Made(made["fail"].run, MadeTables(made["fail"].tables.frames | {"token_texts": some}))))
    assert re.search(r"could not decode 1\S*02[45] of 2\S*048 token ids, which are shown as ids", said)
    assert re.search(r"\[id \d+\]", said)


def test_texts_can_be_left_out(made: dict[str, Made], tmp_path: Path) -> None:
    run, frames = made["fail"].run, dict(made["fail"].tables.frames)
    kept = "kept private"
    frames["token_texts"] = frames["token_texts"].assign(text=kept)
    frames["item_texts"] = frames["item_texts"].assign(prompt=kept)
    frames["items"] = frames["items"].assign(target=kept, reference_answer=kept, variant_answer=kept)
    written = dict.fromkeys(("prompt", "reference_text", "variant_text"), kept)
    frames["generations"] = frames["generations"].assign(**written)
    paths = [ReportHtml(texts=shown).write(run, MadeTables(frames), tmp_path / str(shown)) for shown in (True, False)]
    with_texts, without_texts = (path.read_text(encoding="utf-8") for path in paths)
    assert with_texts.count(kept) > 20
    assert kept not in without_texts
    assert without_texts.count("Texts are left out of this report.") == 3
    assert "Documents by mean KL" in without_texts


# NaN is shown as what it is.


def broken_tables(made: Made) -> Iterator[tuple[str, str, str]]:
    yield "tokens", "kl", "tokens have NaN or infinity on a side"
    yield "tokens", "variant_nll", "tokens have NaN or infinity on a side"
    yield "layers", "sum_squared_error", "without a finite relative error"
    yield "items", "variant_score", "items have no finite"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_rows_are_counted_not_dropped_in_silence(made: dict[str, Made], value: float) -> None:
    for table, column, sentence in broken_tables(made["fail"]):
        frame = made["fail"].tables.frames[table].copy()
        frame.loc[frame.index[:3], column] = value
        frames = made["fail"].tables.frames | {table: frame}
        text = visible(html(Made(made["fail"].run, MadeTables(frames))))
        assert sentence in text, (table, column)
        assert not re.search(r"\bnan\b|\binf\b", text)


def test_a_non_finite_measurement_is_said_in_words(made: dict[str, Made]) -> None:
    broken = Measurement(
        name="perplexity.ratio",
        unit="ratio",
        better="lower",
        n=1,
        clusters=1,
        basis="sampled",
        method="made",
        non_finite="variant",
    )
    text = visible(html(changed(made["fail"], measurements=(broken,))))
    assert "NaN or infinity on the side of the variant" in text


def test_two_suites_are_told_apart(made: dict[str, Made], pages: dict[str, str]) -> None:
    class Two(MadeTables):
        def suites(self) -> tuple[str, ...]:
            return ("core", "second")

        def read(self, suite: str, table: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame | None:
            return super().read("core", table, columns)

    text = render(made["pass"].run, Two(made["pass"].tables.frames), TEMPLATES)
    assert "Suite <strong>core</strong>" in text
    assert "Suite <strong>second</strong>" in text
    assert "Suite <strong>" not in pages["pass"]


# Readable by everyone.


def test_structure_for_screen_readers(pages: dict[str, str]) -> None:
    text = pages["fail"]
    tags = Tags(text).found
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(attributes.get("scope") for tag, attributes in tags if tag == "th")
    for svg in re.findall(r"<svg[^>]*>.{0,8}", text):
        assert 'aria-hidden="true"' in svg or "<title>" in svg or "viewBox" in svg, svg
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(one: str, other: str, percent: int) -> str:
    """The colour that ``color-mix(in srgb, one percent%, other)`` gives."""
    pairs = [(int(one[k : k + 2], 16), int(other[k : k + 2], 16)) for k in (1, 3, 5)]
    return "#" + "".join(f"{round((a * percent + b * (100 - percent)) / 100):02x}" for a, b in pairs)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(scheme: str) -> None:
    style = (TEMPLATES / "style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.S)[:2]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", light if scheme == "light" else dark))
    statuses = ("pass", "fail", "inconclusive", "error")
    pairs = [(text, ground) for text in ("ink", "soft", "link", *statuses) for ground in ("paper", "card")]
    pairs += [(status, "on") for status in statuses] + [("ink", f"{s}-tint") for s in statuses]
    pairs += [("inconclusive", "inconclusive-tint")]
    weak = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
    assert {pair: round(found, 2) for pair, found in weak.items() if found < 4.5} == {}
    shares = [int(share) for share in re.findall(r"^\.loss\d \{ background: color-mix.*?(\d+)%", style, flags=re.M)]
    assert len(shares) == 5
    assert all(contrast(colours["ink"], mixed(colours["fail"], colours["card"], each)) >= 4.5 for each in shares)
    marks = [("reference", "paper"), ("variant", "paper"), ("reference", "card"), ("variant", "card")]
    assert all(contrast(colours[a], colours[b]) >= 3 for a, b in marks)
    ramp = re.findall(r"^ *\.h\d \{ background: (#\w+); color: (#\w+); \}$", style, flags=re.M)
    assert len(ramp) == 20
    assert all(contrast(*pair) >= 4.5 for pair in ramp)


def test_every_status_has_a_mark_a_word_and_colours() -> None:
    from harness.records import Status
    from harness.report.words import STATUSES

    style = (TEMPLATES / "style.css").read_text()
    assert set(STATUSES) == set(get_args(Status))
    assert len({status.mark for status in STATUSES.values()}) == len(STATUSES)
    assert all(f".{name} {{ --tone" in style for name in STATUSES)


def test_simulated_weights_are_said_loudly(made: dict[str, Made], pages: dict[str, str]) -> None:
    text = pages["pass"]
    assert "int4, group 32, simulated" in text
    assert "<strong>Simulated</strong>" in text
    assert "<strong>Not judged</strong>" in text
    real = tuple(
        ModuleFormat.model_validate(m.model_dump() | {"kernel": "real"}) for m in made["pass"].run.variant.modules
    )
    variant = made["pass"].run.variant.model_copy(update={"modules": real, "cache": None})
    assert "<strong>Simulated</strong>" not in html(changed(made["pass"], variant=variant))


# The checklist


def checklist_of(text: str) -> dict[str, str]:
    """Question and what was found, from the page."""
    section = text.partition('<section id="checklist"')[2].partition("</section>")[0]
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th><td>(.*?)</td>', section)
    return {question: visible(found).strip() for question, found in rows}


def test_the_checklist_is_read_off_the_finished_model(made: dict[str, Made], pages: dict[str, str]) -> None:
    found = checklist_of(pages["fail"])
    assert list(found) == [
        "Weights", "Activations", "KV cache", "Calibration data", "Left out", "Kernel", "Stored", "Quality", "Latency",
    ]  # fmt: skip
    assert found["Weights"].startswith("28 modules int4, group 32, simulated, ranges by min max ")
    assert found["Activations"] == "inputs of 12 modules int8 per token, dynamic"
    assert found["KV cache"].startswith("keys int4 per channel, values int4 per token 4.5 bits per value the newest 32")
    assert "pocket-calibration: 64 documents, 8192 tokens" in found["Calibration data"]
    assert "0.012" in found["Calibration data"]
    assert "model.layers.1.mlp.down_proj" in found["Calibration data"]
    assert "1 × float32" in found["Left out"]
    assert "norms are small" in found["Left out"]
    assert found["Kernel"].startswith("simulated")
    assert "at most 15 distinct values in a group" in visible(pages["fail"])


def test_the_checklist_of_a_model_that_is_not_compressed(made: dict[str, Made]) -> None:
    plain = made["pass"].run.reference
    found = checklist_of(html(changed(made["pass"], variant=plain, measurements=())))
    assert found["Weights"] == found["Activations"] == found["KV cache"] == "not quantized"
    assert (found["Calibration data"], found["Kernel"]) == ("none", "that of the reference")
    assert (found["Quality"], found["Latency"]) == ("not measured", "not measured")


def test_full_precision_is_on_hover(made: dict[str, Made], pages: dict[str, str]) -> None:
    ratio = next(m for m in made["fail"].run.measurements if m.name == "perplexity.ratio")
    assert f'title="{ratio.change!r}"' in pages["fail"]
    found = next(v.found for v in made["fail"].run.verdicts if v.metric == "perplexity.ratio")
    assert f'title="{found}"' in pages["fail"]


def test_a_rule_that_passed_is_one_line_and_one_that_did_not_stands_open(
    made: dict[str, Made], pages: dict[str, str]
) -> None:
    rules = pages["fail"].partition('<section id="rules"')[2].partition("</section>")[0]
    statuses = [verdict.status for verdict in made["fail"].run.verdicts]
    assert rules.count('<li class="rule ') == len(statuses) - statuses.count("pass") > 0
    assert rules.count('<th scope="row"') == statuses.count("pass") > 0
    assert '<details class="passed">' in rules
    assert '<details class="passed" open>' in pages["pass"]
