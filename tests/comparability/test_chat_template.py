"""Chat templates are compared as rendered, wherever they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from harness.comparability._common.examples import CONVERSATIONS, render
from harness.comparability._common.sides import Side
from harness.errors import ForeignCodeError
from tests.helpers.folders import CHATML, SETTINGS, Pair, edit


def test_the_first_line_that_is_rendered_differently_is_named(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    edit(pair.reference / SETTINGS, chat_template=CHATML)
    pair.edit(SETTINGS, chat_template=CHATML.replace("<|im_end|>", "<|end|>"))
    (found,) = pair.find("chat_template")
    assert (found.severity, found.reference, found.variant) == (
        "at_once", "What is 2 + 2?<|im_end|>", "What is 2 + 2?<|end|>",
    )  # fmt: skip
    assert found.count == 10
    assert "line 2 of one question" in found.meaning


@pytest.mark.parametrize(
    ("written", "conversation", "count"),
    [
        ("{% if tools %}{{ tools | tojson }}\n{% endif %}" + CHATML, "tools", 2),
        (
            CHATML.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}"),
            "earlier thoughts in tags",
            1,
        ),
        ("{% if enable_thinking is false %}/no_think\n{% endif %}" + CHATML, "no thinking", 1),
    ],
)
def test_what_only_some_conversations_show_is_found(
    tmp_path: Path, written: str, conversation: str, count: int
) -> None:
    pair = Pair(tmp_path)
    edit(pair.reference / SETTINGS, chat_template=CHATML)
    (pair.variant / "chat_template.jinja").write_text(written, encoding="utf-8")
    (found,) = pair.find("chat_template")
    assert (found.example, found.count) == (conversation, count)


@pytest.mark.parametrize("side", ["reference", "variant"])
def test_a_template_on_one_side_only_is_a_difference(tmp_path: Path, side: str) -> None:
    pair = Pair(tmp_path)
    (getattr(pair, side) / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    (found,) = pair.find("chat_template")
    lacking = "variant" if side == "reference" else "reference"
    assert getattr(found, lacking) == "none"
    assert f"the {lacking} has no such template" in found.meaning
    assert found.severity == "at_once"


def test_the_same_template_in_another_file_is_no_difference(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    edit(pair.reference / SETTINGS, chat_template=CHATML)
    (pair.variant / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    assert pair.compare().comparable == "yes"
    assert not pair.find("chat_template")


def test_a_template_that_is_only_written_otherwise_changes_nothing(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    edit(pair.reference / SETTINGS, chat_template=CHATML)
    pair.edit(SETTINGS, chat_template="{# the same #}" + CHATML)
    (found,) = pair.find("chat_template")
    assert found.severity == "informative"
    assert pair.compare().comparable == "yes"


def test_a_template_that_refuses_a_conversation_differs_from_one_that_does_not(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    edit(pair.reference / SETTINGS, chat_template=CHATML)
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}" + CHATML
    pair.edit(SETTINGS, chat_template=refusing)
    (found,) = pair.find("chat_template")
    assert "refused: TemplateError: no system prompt" in found.variant
    assert found.count == 3


def test_templates_by_name_are_compared_by_name(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": CHATML}]
    edit(pair.reference / SETTINGS, chat_template=named)
    pair.edit(SETTINGS, chat_template=named[:1])
    assert [each.field for each in pair.find("chat_template")] == ["tool_use"]


def test_the_date_that_a_template_writes_is_the_same_on_every_day(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    edit(pair.reference / SETTINGS, chat_template=CHATML)
    pair.edit(SETTINGS, chat_template="Today is {{ strftime_now('%d %B %Y') }}.\n" + CHATML)
    (found,) = pair.find("chat_template")
    assert found.variant == "Today is 31 January 2025."


def test_a_template_that_reached_the_time_limit_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def hang(chat_template: str, **_: Any) -> tuple[list[str], None]:
        tried.append(chat_template)
        raise ForeignCodeError("it gave no sign of life for 1800 s")

    monkeypatch.setattr(chat_template_utils, "render_jinja_template", hang)
    side = Side("variant", None, tmp_path)
    reasons = {render(side, "endless", each) for each in CONVERSATIONS}
    assert reasons == {("", "ForeignCodeError: it gave no sign of life for 1800 s")}
    assert tried == ["endless"]
    assert render(side, "another", CONVERSATIONS[0])[1]
    assert tried == ["endless", "another"]
