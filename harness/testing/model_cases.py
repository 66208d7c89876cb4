"""Cases about the effects of a backend: on the model, on global state, and on input that it must refuse."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from harness.errors import BackendError
from harness.testing.declared import Declared


class ModelCases(Declared):
    """Cases that compress small models."""

    # --- what it must not touch ---------------------------------------------------------------------------

    def test_the_original_stays_as_it_is(self) -> None:
        from harness.models.identity import config_sha256, weights_sha256
        from harness.testing import trials

        reference = self.model("tied")
        before = weights_sha256(reference), config_sha256(reference.config), trials.logits(reference)
        trials.compress(self.step(), reference)
        assert weights_sha256(reference) == before[0], "weights of the original changed"
        assert config_sha256(reference.config) == before[1], "the configuration of the original changed"
        assert trials.logits(reference).equal(before[2]), "the original computes different outputs"

    def test_it_writes_into_its_model_only_if_it_says_so(self) -> None:
        from harness.models.identity import weights_sha256
        from harness.running.variant import lend_parameters
        from harness.testing import models, trials

        if self.step().writes_in_place:
            pytest.skip("it says that it writes into its model")
        for kind in ("tied", "gpt2"):
            reference = self.model(kind)
            before, lent = weights_sha256(reference), lend_parameters(reference)
            materials = trials.materials_for(self.step(), reference)
            self.step().apply(copy.deepcopy(reference, lent), models.tiny_tokenizer(), materials)
            assert weights_sha256(reference) == before, "writes_in_place is False, but it wrote into a parameter"

    def test_nothing_global_changes(self) -> None:
        from harness.testing import models, trials

        step, model = self.step(), copy.deepcopy(self.model())
        materials, tokenizer = trials.materials_for(step, self.model()), models.tiny_tokenizer()
        with trials.forbid_global_changes():
            step.apply(model, tokenizer, materials)

    def test_the_same_settings_give_the_same_bytes(self) -> None:
        from harness.models.identity import weights_sha256
        from harness.testing import trials

        first = self.trial()
        again = trials.compress(self.step(), first.reference, chance=1)
        assert weights_sha256(first.model) == weights_sha256(again.model), "weights differ between two runs"
        assert again.done.modules == first.done.modules
        assert (again.done.activations, again.done.cache) == (first.done.activations, first.done.cache)
        assert again.done.notes == first.done.notes
        assert trials.logits(first.model).equal(trials.logits(again.model))

    # --- how well it does ---------------------------------------------------------------------------------

    def test_fine_settings_change_little(self) -> None:
        from harness.testing import trials

        found = trials.divergence(self.trial())
        assert found <= self.close, (
            f"the finest settings cost {found:.3g} nats per token, more than the {self.close} allowed"
        )

    def test_coarser_settings_change_more(self) -> None:
        from harness.testing import trials

        if len(self.ladder) < 2:
            pytest.skip("the ladder has one rung")
        found = [trials.divergence(self.trial(settings)) for settings in self.ladder]
        assert found == sorted(found), f"mean KL does not rise along the ladder: {found}"
        assert found[0] < found[-1]

    def test_what_quantizes_nothing_changes_nothing(self) -> None:
        from harness.testing import trials

        exact = [each for each in self.ladder if not (self.step(each).puts_on_grid or self.step(each).trains)]
        exact += self.unchanged
        if not exact:
            pytest.skip("no settings are declared as unchanged")
        for settings in exact:
            trial = self.trial(settings)
            moved = trials.deviation(trials.logits(trial.model), trials.logits(trial.reference))
            assert moved < 1e-4, f"logits move by {moved:.3g} of their standard deviation"

    # --- what it says about it ----------------------------------------------------------------------------

    def test_it_quantizes_what_it_says(self) -> None:
        from harness.testing import trials

        for settings in self.ladder:
            trial, quantizes = self.trial(settings), self.step(settings).puts_on_grid
            done = trial.done
            said = {"weights": bool(done.modules), "activations": bool(done.activations), "cache": bool(done.cache)}
            for what, described in said.items():
                assert (what in quantizes) == described, f"puts_on_grid is {quantizes}, and Compressed says {said}"
            changed = trials.list_changed_weights(trial)
            assert not quantizes or "weights" in quantizes or not changed, f"it changed {changed[0]}"

    def test_every_description_fits_its_module(self) -> None:
        from harness.modules.grid_check import check_grids
        from harness.testing import trials

        for trial in map(self.trial, self.ladder):
            present = {name for name, _ in trial.model.named_modules()}
            described = {stated.module: stated for stated in trial.done.modules}
            missing = (described.keys() | trial.done.activations.keys()) - present
            assert not missing, f"described, but no modules of the compressed model: {missing}"
            for stated in described.values():
                assert stated.backend == self.backend, f"{stated.module}: backend is {stated.backend!r}"
                trials.check_size(stated, trial.reference)
            check_grids(trial.model, described)

    def test_the_harness_takes_it(self) -> None:
        from harness.testing import trials

        step = self.step()
        identity = trials.as_variant(step, self.model("tied"), trials.calibration_for(step)).identity
        assert any(module.backend == self.backend for module in identity.modules) == ("weights" in step.puts_on_grid)
        assert any(module.activations for module in identity.modules) == ("activations" in step.puts_on_grid)
        assert bool(identity.cache) == ("cache" in step.puts_on_grid)

    # --- the model that comes out -------------------------------------------------------------------------

    def test_hooks_hear_every_decoder_block(self) -> None:
        self.needs("hooks")
        from harness.modules.decoder_layers import decoder_blocks
        from harness.testing import trials

        trial = self.trial()
        name, blocks = decoder_blocks(trial.reference)
        described = {*trial.done.activations, *(stated.module for stated in trial.done.modules)}
        wanted = [f"{name}.{index}" for index in range(len(blocks))]
        wanted += sorted(described & {name for name, _ in trial.reference.named_modules()})
        before, after = (trials.output_shapes(model, wanted) for model in (trial.reference, trial.model))
        assert after == before, "modules give other shapes, or are called more or less often"

    def test_it_generates_what_it_predicts(self) -> None:
        self.needs("generation")
        from harness.testing import trials

        short = trials.shortfall(self.trial().model)
        assert short < self.alike, (
            f"generated tokens differ from those of a single pass, by {short:.3g} below its best logit"
        )

    def test_the_kv_cache_is_usable(self) -> None:
        self.needs("cache")
        from harness.testing import trials

        model = self.trial().model
        moved = trials.deviation(trials.run_in_two_parts(model), trials.logits(model)[:, -1])
        assert moved < self.alike, f"with a cache, logits move by {moved:.3g} of their standard deviation"

    def test_a_text_is_read_alike_in_any_company(self) -> None:
        from harness.testing import trials

        model = self.trial().model
        moved = trials.deviation(trials.logits(model, texts=1)[0], trials.logits(model)[0])
        assert moved < self.alike, f"alone, a text's logits move by {moved:.3g} of their standard deviation"

    def test_bfloat16_works_or_is_refused(self) -> None:
        from harness.testing import trials

        if "bfloat16" not in self.dtypes:
            with pytest.raises(BackendError, match="bfloat16") as refusal:
                self.trial(dtype="bfloat16")
            assert str(refusal.value).startswith(self.backend), "the message begins with the name of the backend"
            return
        trial = self.trial(dtype="bfloat16")
        found = {parameter.dtype for parameter in trial.model.parameters() if parameter.is_floating_point()}
        assert found <= {parameter.dtype for parameter in trial.reference.parameters()}, "parameters change their dtype"
        cost = trials.divergence(trial)
        assert cost <= 2 * self.close + 0.005, f"it costs {cost:.3g} nats per token"

    def test_conv1d_works_or_is_refused(self) -> None:
        from harness.testing import trials

        refusal, cost = "", 0.0
        try:
            cost = trials.divergence(self.trial(kind="gpt2"))
        except BackendError as error:
            refusal = str(error)
        assert cost <= 2 * self.close, f"it costs {cost:.3g} nats per token"
        assert not refusal or refusal.startswith(self.backend), "the message begins with the name of the backend"

    def test_a_tied_head_stays_sound(self) -> None:
        from harness.testing import trials

        everything = [{**self.ladder[0], "skip": ()}] if "skip" in self.plugin().model_fields else []
        for settings in (self.ladder[0], *everything):
            trial = trials.compress(self.step(settings), self.model("tied"))
            before = trials.logits(trial.model)
            trial.model.tie_weights()
            same = trials.logits(trial.model).equal(before)
            assert same, "tie_weights() reverts the head; an untied head needs config.tie_word_embeddings = False"
            cost = trials.divergence(trial)
            assert cost <= 2 * self.close, f"it costs {cost:.3g} nats per token"

    def test_saved_and_loaded_it_computes_the_same(self, tmp_path: Path) -> None:
        from harness.models.identity import weights_sha256
        from harness.testing import trials

        if not self.reloads:
            pytest.skip("no settings are declared as those of models that can be saved and loaded")
        for number, settings in enumerate(self.reloads):
            model = self.trial(settings).model
            before, expected = weights_sha256(model), trials.logits(model)
            loaded = trials.save_and_load(self.step(settings), model, tmp_path / str(number))
            assert weights_sha256(model) == before, "saving changes the weights of the model that is saved"
            assert trials.logits(model).equal(expected), "saving changes what the model computes"
            moved = trials.deviation(trials.logits(loaded), expected)
            assert moved < self.reloaded, f"loaded again, logits move by {moved:.3g} of their standard deviation"

    # --- what it refuses ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("module", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"])
    def test_a_weight_that_is_not_finite_is_refused(self, module: str, value: float) -> None:
        from harness.testing import trials

        if (quantizes := self.step().puts_on_grid) and "weights" not in quantizes:
            pytest.skip("it does not touch weights")
        model = copy.deepcopy(self.model())
        trials.spoil(model, module, value)
        with pytest.raises(BackendError) as refusal:
            trials.compress(self.step(), model)
        assert self.backend in str(refusal.value), refusal.value
        assert module in str(refusal.value), refusal.value

    def test_a_pattern_that_matches_nothing_is_refused(self) -> None:
        from harness.testing import trials

        fields = [name for name in ("only", "skip") if name in self.plugin().model_fields]
        if not fields:
            pytest.skip("it has neither only nor skip")
        for name in fields:
            with pytest.raises(BackendError, match=r"no\.such\.module"):
                trials.compress(self.step({**self.ladder[0], name: ("no.such.module",)}), self.model())
