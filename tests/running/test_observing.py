"""Which pairs a probe observes, with what in its context, and what becomes of a pair that fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from harness.errors import DataError, HarnessError
from harness.measures.memory import Memory
from harness.planning.specs import SuiteSpec
from harness.probes import Context, Probe, Reads
from harness.records import DocumentsSpec, Note
from harness.running.observing import observe
from harness.running.pairs import Pair
from tests.helpers.pass_pairs import Silent, make_documents

CONTEXTS: list[Context] = []


class Reading(Probe):
    """Keeps its contexts, and fails on a variant of the name bad."""

    runs = "alone"
    reads: ClassVar[Reads] = "tokens"

    def observe(self, context: Context) -> None:
        CONTEXTS.append(context)
        if "bad" in [variant.name for variant in context.variants]:
            raise DataError("bad cannot be observed")


class ReadingTexts(Reading):
    """The same of texts."""

    reads = "texts"


class Saying(Reading):
    """Has something to say about every variant."""

    def notes(self, sink: Any) -> tuple[Note, ...]:
        return (Note(topic="tasks", text=f"read from {sink}"),)


class ReadingNothing(Reading):
    """The same of nothing, on models with a cache."""

    reads = "nothing"
    needs: ClassVar[tuple[Any, ...]] = ("cache",)


for _cls, _name in ((Reading, "tokens"), (Saying, "said"), (ReadingTexts, "texts"), (ReadingNothing, "nothing")):
    _cls.kind = _name


@pytest.fixture(autouse=True)
def contexts() -> list[Context]:
    CONTEXTS.clear()
    return CONTEXTS


def pair(name: str, mismatches: dict[str, str] | None = None, unsupported: dict[str, str] | None = None) -> Pair:
    store, observed = SimpleNamespace(sink=lambda suite: f"{name} in {suite}"), SimpleNamespace(seconds={}, notes=[])
    variant: Any = SimpleNamespace(name=name)
    return Pair(variant, store, observed, 96, mismatches or {}, unsupported or {})  # type: ignore[arg-type]


def observe_all(folder: Path, probe: Probe, *pairs: Pair) -> None:
    (folder / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    spec = DocumentsSpec(data=str(folder / "texts.jsonl"))
    suite = SuiteSpec(name="s", source="s.yaml", documents=spec, measures=(Memory(),), probes=(probe,))
    reference: Any = SimpleNamespace(name="reference")
    observe([suite], {"s": make_documents()}, reference, pairs, Silent())


def variants() -> list[list[str]]:
    return [[variant.name for variant in context.variants] for context in CONTEXTS]


def test_a_probe_that_reads_tokens_gets_documents_and_no_pair_with_other_token_ids(tmp_path: Path) -> None:
    observe_all(tmp_path, Reading(), pair("same"), pair("student", {"s": "other token ids"}))
    assert variants() == [["same"]]
    assert [document.id for document in CONTEXTS[0].documents] == [document.id for document in make_documents()]
    context: Any = CONTEXTS[0]
    assert (context.texts, context.artifact, context.sinks) == ((), None, ["same in s"])


def test_a_probe_that_reads_texts_gets_them_for_every_pair(tmp_path: Path) -> None:
    observe_all(tmp_path, ReadingTexts(), pair("same"), pair("student", {"s": "other token ids"}))
    assert variants() == [["same", "student"]]
    assert [text.text for text in CONTEXTS[0].texts] == ["one", "two"]
    assert CONTEXTS[0].documents == ()


def test_a_variant_that_lacks_what_the_probe_needs_is_left_out(tmp_path: Path) -> None:
    observe_all(tmp_path, ReadingNothing(), pair("same"), pair("deaf", unsupported={"nothing": "no cache"}))
    assert variants() == [["same"]]
    assert (CONTEXTS[0].documents, CONTEXTS[0].texts) == ((), ())


def test_a_pair_that_fails_keeps_its_error_and_the_others_are_observed_alone(tmp_path: Path) -> None:
    good, bad, other = pair("good"), pair("bad"), pair("other")
    observe_all(tmp_path, Reading(), good, bad, other)
    assert variants() == [["good", "bad", "other"], ["good"], ["bad"], ["other"]]
    assert isinstance(bad.error, HarnessError)
    assert str(bad.error) == "bad cannot be observed"
    assert (good.error, other.error) == (None, None)


def test_what_a_probe_has_to_say_is_noted_once_for_each_variant(tmp_path: Path) -> None:
    one, other = pair("one"), pair("other")
    observe_all(tmp_path, Saying(), one, other)
    observe_all(tmp_path, Saying(), one, other)
    assert [note.text for note in one.observed.notes] == ["read from one in s"]
    assert [note.text for note in other.observed.notes] == ["read from other in s"]
