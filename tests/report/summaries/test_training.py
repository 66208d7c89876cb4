"""The section about a training, and the lines of checklist and digest, on a run with made tables."""

from __future__ import annotations

import pandas as pd

from harness.records import Run, TrainingData
from harness.report.digest import describe_variant
from harness.report.drawing.curves import Curve, learning_curves
from harness.report.summaries.checklist import answers
from harness.report.summaries.suite_tables import SuiteTables
from harness.report.summaries.training import read_trainings
from tests.helpers.made_run import make_run
from tests.helpers.made_tables import MadeTables

DATA = TrainingData(source="texts.jsonl, seed 3", documents=1200, held_out=16, tokens=90_000, sha256="ab" * 32)
ROWS = [
    *[("curve", "1 distill", step, "loss", 2.0 / (1 + step), 0.0) for step in range(1, 5)],
    *[("curve", "1 distill", step, "held_out_loss", value, 0.0) for step, value in ((0, 3.0), (2, 1.0), (4, 1.5))],
    *[("curve", "1 distill", step, "held_out_kl", value, 0.0) for step, value in ((0, 0.9), (2, 0.2), (4, 0.4))],
    ("memory", "1 distill", 2, "optimizer", 800.0, 800.0),
    ("memory", "1 distill", 2, "activations", 5e6, float("nan")),
    *[("fit", "1 distill", 2, name, value, 0.0) for name, value in
      (("steps", 4), ("kept", 2), ("batch", 8), ("part", 2), ("tokens", 4000))],
    ("overlap", "", 3, "", 1.0, 40.0),
]  # fmt: skip


def trained() -> Run:
    run = make_run("pass", documents=20, length=20).run
    return run.model_copy(update={"variant": run.variant.model_copy(update={"training": DATA})})


def tables() -> SuiteTables:
    frame = pd.DataFrame(ROWS, columns=["part", "fit", "at", "name", "value", "other"])
    return SuiteTables("core", MadeTables({"training": frame}, "core"))


def test_numbers_are_those_of_the_step_that_was_kept() -> None:
    (found,) = read_trainings([SuiteTables("empty", MadeTables({}, "empty")), tables()])
    assert found.name == "distill"
    assert found.rows == [("Loss", 3.0, 1.0), ("KL from the reference", 0.9, 0.2)]
    assert found.memory == (("optimizer states", 800.0, 800.0), ("activations", None, 5e6))


def test_the_section_shows_curves_memory_and_what_ran_out() -> None:
    from harness.system.resources import folder
    from harness.writers.report_html import render

    made = tables().source
    page = render(trained(), made, folder("reports"))
    section = page.partition('<section id="training"')[2].partition("</section>")[0]
    assert "Trained on 1200 texts" in section
    assert "step 2 was kept, whose held-out loss is the lowest" in section
    assert "Memory ran out, so 2 documents went through at a time" in section
    assert section.count("<figure") == 2
    assert "unknown" in section
    untrained = render(make_run("pass", documents=20, length=20).run, made, folder("reports"))
    assert "Trained on" not in untrained


def test_checklist_and_digest_name_the_texts() -> None:
    run = trained()
    (line,) = [each for each in answers(run) if each.question == "Training data"]
    assert "texts.jsonl, seed 3" in line.found[0]
    assert any("trained on: 1200 texts of texts.jsonl, seed 3" in line for line in describe_variant(run))
    plain = make_run("pass", documents=20, length=20).run
    assert not [each for each in answers(plain) if each.question == "Training data"]


def test_curves_are_drawn_by_logarithm_where_they_can_be() -> None:
    drawn = learning_curves([Curve("loss", tuple((n, 1.0 / n) for n in range(1, 2001)), "variant")], 2000, "many")
    assert drawn.count(",") < 900
    assert "loss: 1 at step 1" in drawn
    assert "at step 2" in drawn
    negative = learning_curves([Curve("gain", ((0, -1.0), (5, 2.0)), "variant", True)], 5, "signs")
    assert negative.count("<circle") == 2
    assert "no values" in learning_curves([], 0, "nothing")
