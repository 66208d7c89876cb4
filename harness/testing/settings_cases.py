"""Cases about a backend's declaration: its name, docstrings and settings, and how the plan handles them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from harness.backends import Backend
from harness.errors import BackendError, PlanError
from harness.testing.declared import Declared, Settings

HEAVY = ("torch", "transformers", "datasets", "lm_eval")
SUITE = "description: any\ndocuments: {data: pocket-heldout, max: 2, context: 16}\nmeasures: [divergence]\n"
GATE = "description: any\nrules:\n  - {rule: at_most, metric: divergence.kl_mean, limit: 1.0, why: any number}\n"


class SettingsCases(Declared):
    """Cases that need no compression."""

    # --- what it is ---------------------------------------------------------------------------------------

    def test_it_is_found_by_its_name(self) -> None:
        found = self.plugin()
        assert issubclass(found, Backend)
        assert found.kind == self.backend
        assert found.compress is not Backend.compress, f"{found.__name__} has no compress of its own"

    def test_it_says_what_it_does(self) -> None:
        found = self.plugin()
        assert found.summary().endswith("."), "the first line of the docstring is a sentence, shown by harness list"
        silent = [name for name, field in found.model_fields.items() if not field.description]
        assert not silent, f"fields without a docstring or description: {', '.join(silent)}"

    def test_importing_it_loads_no_model_library(self) -> None:
        heavy = (*HEAVY, *self.plugin().requires)
        code = "import sys\nfrom harness.backends import Backend\nfrom harness.plugins import load\n"
        code += f"load(Backend, {self.backend!r})\n"
        code += f"print([name for name in {heavy!r} if name in sys.modules])"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith("[]"), f"import inside compress what {done.stdout.strip()} needs"

    # --- settings -----------------------------------------------------------------------------------------

    def test_settings_survive_json(self) -> None:
        for settings in (*self.ladder, *self.unchanged):
            step = self.step(settings)
            assert type(step).model_validate_json(json.dumps(step.settings())) == step

    def test_an_unknown_setting_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="no_such_setting"):
            self.step({**self.ladder[0], "no_such_setting": 1})

    def test_settings_of_a_wrong_type_are_refused(self) -> None:
        for name in self.plugin().model_fields:
            for wrong in (object(), float("nan")):
                with pytest.raises(ValidationError) as refusal:
                    self.step({**self.ladder[0], name: wrong})
                assert any(name in error["loc"] for error in refusal.value.errors()), f"{name}: {refusal.value}"

    def test_settings_that_make_no_sense_are_refused(self) -> None:
        if not self.refused:
            pytest.skip("no settings are declared as refused")
        for settings in self.refused:
            with pytest.raises(ValidationError):
                pytest.fail(f"accepted: {self.step(settings)!r}")

    def test_settings_cannot_be_changed(self) -> None:
        step = self.step()
        for name in type(step).model_fields:
            with pytest.raises(ValidationError):
                setattr(step, name, getattr(step, name))

    # --- the plan -----------------------------------------------------------------------------------------

    def test_a_variant_file_can_name_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from harness.plan import make_plan

        monkeypatch.setattr("harness.plan.is_installed", lambda library: True)
        monkeypatch.setattr(self.plugin(), "lacks", lambda step: "")
        for settings in (*self.ladder, *self.unchanged):
            (step,) = make_plan(self.variant_file(tmp_path, settings)).variant.compress
            assert step == self.step(settings)

    def test_without_calibration_documents_it_is_refused(self, tmp_path: Path) -> None:
        from harness.plan import make_plan
        from harness.testing import trials

        step = self.step()
        if not step.calibrates:
            pytest.skip("it needs no documents")
        with pytest.raises(PlanError, match=f"{self.backend}, but no calibration"):
            make_plan(self.variant_file(tmp_path, self.ladder[0], calibration=False))
        with pytest.raises(BackendError, match="needs calibration documents"):
            trials.as_variant(step, self.model(), ())

    def test_without_training_texts_it_is_refused(self, tmp_path: Path) -> None:
        from harness.backends import Materials
        from harness.plan import make_plan
        from harness.testing import models

        step = self.step()
        if not step.trains:
            pytest.skip("it trains nothing")
        with pytest.raises(PlanError, match=f"{self.backend}, but no training data"):
            make_plan(self.variant_file(tmp_path, self.ladder[0], training=False))
        with pytest.raises(BackendError, match="needs texts to train on"):
            step.apply(self.model(), models.tiny_tokenizer(), Materials())

    def test_a_missing_library_is_named_with_what_installs_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from harness.plan import make_plan

        requires, find = self.plugin().requires, importlib.util.find_spec
        if not requires:
            pytest.skip("it requires no library")
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *more: None if name in requires else find(name, *more)
        )
        with pytest.raises(PlanError, match=r"not installed.*pip install") as refusal:
            make_plan(self.variant_file(tmp_path, self.ladder[0]))
        for library in requires:
            assert library in str(refusal.value)

    def variant_file(self, folder: Path, settings: Settings, calibration: bool = True, training: bool = True) -> Path:
        """A variant.yaml that names the backend."""
        step = self.step(settings)
        content: dict[str, Any] = {
            "name": "conformance",
            "reference": {"model": "pocket"},
            "variant": {"compress": [{"backend": self.backend, **step.model_dump(mode="json", exclude_unset=True)}]},
            "suites": ["./suite.yaml"],
            "gates": ["./gate.yaml"],
        }
        if calibration and step.calibrates:
            content["calibration"] = {"data": "pocket-calibration", "documents": 2, "tokens": 16}
        if training and step.trains:
            content["training"] = {"data": "pocket-train", "documents": 16, "tokens": 16, "steps": 1}
        (folder / "suite.yaml").write_text(SUITE)
        (folder / "gate.yaml").write_text(GATE)
        (folder / "variant.yaml").write_text(yaml.safe_dump(content))
        return folder / "variant.yaml"
