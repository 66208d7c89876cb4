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
from harness.records import DocumentsSpec
from harness.running.pairs import LoadedPair
from harness.running.session import Session
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


class ReadingNothing(Reading):
    """The same of nothing, on models with a cache."""

    reads = "nothing"
    needs: ClassVar[tuple[Any, ...]] = ("cache",)


for _cls, _name in ((Reading, "tokens"), (ReadingTexts, "texts"), (ReadingNothing, "nothing")):
    _cls.kind = _name


@pytest.fixture(autouse=True)
def contexts() -> list[Context]:
    CONTEXTS.clear()
    return CONTEXTS


def pair(name: str, mismatches: dict[str, str] | None = None, unsupported: dict[str, str] | None = None) -> LoadedPair:
    made: Any = SimpleNamespace(
        facts=SimpleNamespace(token_mismatches=mismatches or {}, unsupported=unsupported or {}),
        store=SimpleNamespace(sink=lambda suite: f"{name} in {suite}"),
        observed=SimpleNamespace(seconds={}, notes=[], plan=SimpleNamespace(stop_at_failure=False)),
        variant=SimpleNamespace(name=name),
    )
    return LoadedPair(**vars(made))


def make_suite(folder: Path, probe: Probe) -> SuiteSpec:
    (folder / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    spec = DocumentsSpec(data=str(folder / "texts.jsonl"))
    return SuiteSpec(name="s", source="s.yaml", documents=spec, measures=(Memory(),), probes=(probe,))


def observe_all(folder: Path, probe: Probe, *pairs: LoadedPair) -> None:
    reference: Any = SimpleNamespace(name="reference", tokenizer=None)
    Session(reference, [make_suite(folder, probe)], {"s": make_documents()}, pairs, Silent()).observe(pairs)


def variants() -> list[list[str]]:
    return [[variant.name for variant in context.variants] for context in CONTEXTS]


def test_a_probe_that_reads_tokens_gets_documents_and_no_pair_with_other_token_ids(tmp_path: Path) -> None:
    observe_all(tmp_path, Reading(), pair("same"), pair("student", {"s": "other token ids"}))
    assert variants() == [["same"]]
    assert [document.id for document in CONTEXTS[0].documents] == [document.id for document in make_documents()]
    context: Any = CONTEXTS[0]
    assert (context.texts, context.artifact) == ((), None)
    assert [sink.sink.sink for sink in context.sinks] == ["same in s"]


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
