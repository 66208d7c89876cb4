"""The section of the report on what would be shipped."""

from __future__ import annotations

import re

import pytest

from harness.records import Artifact, ArtifactFile, Measurement, Note, Run, Skipped
from harness.report.summaries import artifact
from harness.system import resources
from harness.writers.report_html import render
from tests.helpers.made_run import Made, make_run

SHA = "0123456789abcdef" * 4
FILES = tuple(ArtifactFile(name=f"model-{at:02}.safetensors", bytes=2_000, sha256=SHA) for at in range(45))
KL = Measurement(
    name="artifact.kl_max", unit="nats/token", better="lower", change=18.7, n=8, clusters=4,
    basis="sampled", method="of <all> tokens"
)  # fmt: skip
BYTES = Measurement(
    name="artifact.bytes", unit="bytes", better="lower", variant=90_000.0, n=45, clusters=0,
    basis="counted", method="exact"
)  # fmt: skip


@pytest.fixture(scope="module")
def made() -> Made:
    return make_run()


def section(made: Made, **update: object) -> str:
    run = made.run.model_copy(update=update)
    page = render(run, made.tables, resources.folder("reports"))
    found = re.search(r'<section id="artifact".*?</section>', page, re.DOTALL)
    assert found
    return found[0]


def test_a_run_that_did_not_look_says_so(made: Made) -> None:
    assert "No suite of this run measured the artifact." in section(made, artifact=None)
    assert artifact.describe(made.run.model_copy(update={"artifact": None})) == ""


def test_files_numbers_and_notes_are_shown_and_escaped(made: Made) -> None:
    notes = (Note(topic="artifact", text="held as <floats>", level="warn"), Note(topic="floor", text="elsewhere"))
    shown = section(made, artifact=Artifact(kind="saved", files=FILES), measurements=(KL, BYTES), notes=notes)
    assert "reloaded in a fresh process" in shown
    assert shown.count(f"<code>{SHA[:12]}…</code>") == 40
    assert "5 more files are in" in shown
    assert "90\u202fkB" in shown
    assert "18.7" in shown
    assert "of &lt;all&gt; tokens" in shown
    assert "held as &lt;floats&gt;" in shown
    assert "elsewhere" not in shown


def test_a_checkpoint_is_called_one(made: Made) -> None:
    shown = section(made, artifact=Artifact(kind="checkpoint", files=FILES[:1]), measurements=(BYTES,))
    assert "loaded from these files and not changed" in shown


def test_each_reason_why_nothing_was_measured_is_said_once(made: Made) -> None:
    skipped = tuple(Skipped(measure=f"artifact.{name}", reason="it cannot be saved") for name in ("kl_max", "kl_mean"))
    run: Run = made.run.model_copy(update={"skipped": skipped})
    assert artifact.collect_reasons(run) == ["it cannot be saved"]
    assert section(made, skipped=skipped).count("it cannot be saved") == 1
