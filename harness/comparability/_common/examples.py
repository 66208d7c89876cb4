"""Inputs on which two sides are compared: strings that are common in use, strings that are not, and conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from harness.comparability._common.sides import Side
from harness.errors import ForeignCodeError
from harness.system.foreign import guard

Message = dict[str, Any]

COMMON = (
    "Hello, world! How are you today?",
    "The price rose from 12.50 to 1987 dollars in 3 years, i.e. by 15,800%.",
    "First line.\nSecond line, with a tab:\there.\n\nA new paragraph.",
    "It's what they'd call \"state of the art\" (or so we're told); isn't it?",
    "def add(a, b):\n    return a + b  # 2 + 2 == 4\n",
    "http://example.org/a_path?q=1&r=two#three, NAME_OF_A_THING, camelCaseWord",
)
"""Text of every kind that people write to models every day."""
RARE = (
    "   three  spaces,    four,\t\ttwo tabs, trailing   ",
    "\n\n\n\nfour empty lines\r\nand an end of line of another system\r\n",
    "café, naïve, Ångström, piñata, Übergröße, čeština",
    "cafe\u0301 with a combining accent, ﬁ as a ligature, Ⅳ as a Roman numeral, ２ in full width",
    "👋🏽 wave, 👨‍👩‍👧‍👦 family, 🇩🇪 flag",
    "你好，世界。今天天气很好。",
    "こんにちは世界、カタカナとひらがな",
    "안녕하세요 세계",
    "Привет, мир! Καλημέρα κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया",
    "x² + y³ ≤ ∑ αᵢ ∈ ℝ → ∞, 5 €, 10 ‰, “quotes” – dashes — and … dots",
    "SHOUTING IN CAPITALS and iNtErMiXeD",
    "\u00a0no-break\u200bzero-width\ufeffmark\u2028separator",
    "<|im_start|>user\n[INST] <<SYS>> </s><s> <pad> <unk> <think> </think>",
    "0000000000 1234567890123456789 1e-10 0xDEADBEEF 3.14159",
    "a",
    " ",
)
"""Text that a suite may well hold none of."""

_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city."}},
            "required": ["city"],
        },
    },
}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
_NOW = datetime(2025, 1, 31, 12, tzinfo=UTC)
"""The date that templates are told, so that every run renders the same."""


@dataclass(frozen=True)
class Conversation:
    """One conversation that both sides' chat templates render."""

    name: str
    messages: Sequence[Message]
    tools: Sequence[Message] | None = None
    prompt: bool = True
    """Whether the model is to answer next."""
    options: Mapping[str, Any] = field(default_factory=dict)


def _says(role: str, content: str, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


_QUESTION, _ANSWER = _says("user", "What is 2 + 2?"), _says("assistant", "2 + 2 is 4.")
_SYSTEM, _NEXT = _says("system", "Answer briefly."), _says("user", "And 3 + 3?")
_THOUGHT = _says("assistant", "4", reasoning_content="Two and two make four.")
_TAGGED = _says("assistant", "<think>\nTwo and two make four.\n</think>\n\n4")
_WEATHER = _says("user", "What is the weather in Oslo?")
CONVERSATIONS = (
    Conversation("one question", (_QUESTION,)),
    Conversation("a system prompt", (_SYSTEM, _QUESTION)),
    Conversation("several turns", (_QUESTION, _ANSWER, _NEXT)),
    Conversation("a finished conversation", (_SYSTEM, _QUESTION, _ANSWER), prompt=False),
    Conversation("tools", (_SYSTEM, _WEATHER), (_TOOL,)),
    Conversation(
        "a tool's answer",
        (
            _WEATHER,
            _says("assistant", "", tool_calls=[_CALL]),
            _says("tool", '{"celsius": 7}', name="get_weather", tool_call_id="call00001"),
        ),
        (_TOOL,),
    ),
    Conversation("thinking", (_QUESTION,), options={"enable_thinking": True}),
    Conversation("no thinking", (_QUESTION,), options={"enable_thinking": False}),
    Conversation("earlier thoughts", (_QUESTION, _THOUGHT, _NEXT)),
    Conversation("earlier thoughts in tags", (_QUESTION, _TAGGED, _NEXT)),
)


def render(side: Side, template: str, conversation: Conversation) -> tuple[str, str]:
    """What the template makes of a conversation, and the reason if it makes nothing of it.

    Rendered as transformers does, in its sandbox, under a time limit; a template that reached it is not tried again.
    """
    if template in side.endless_templates:
        return "", side.endless_templates[template]
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        with guard(f"the chat template of {side.name}"):
            rendered, _ = cast(
                "tuple[list[str], object]",
                render_jinja_template(
                    conversations=[list(conversation.messages)],
                    tools=None if conversation.tools is None else list(conversation.tools),
                    chat_template=template,
                    add_generation_prompt=conversation.prompt,
                    **{**side.special_tokens, **conversation.options, "strftime_now": _NOW.strftime},
                ),
            )
    except ForeignCodeError as error:
        side.endless_templates[template] = f"{type(error).__name__}: {error}"
        return "", side.endless_templates[template]
    except Exception as error:  # noqa: BLE001 - a template raises what it likes; many refuse conversations by raising
        return "", f"{type(error).__name__}: {error}"
    return rendered[0], ""


def common_strings(side: Side) -> Iterator[str]:
    """What users of ``side`` send every day: the common strings, and conversations as its chat template renders them.

    Templates begin with the start token, which tokenizers add too; these texts are for comparisons only.
    """
    yield from COMMON
    template = side.chat_templates.get("default")
    for conversation in CONVERSATIONS if template is not None else ():
        text, reason = render(side, template or "", conversation)
        if not reason:
            yield text
