"""The kit finds what is wrong with a backend: each mistake fails the case that is there for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ConfigDict, model_serializer
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

from harness import plugins
from harness.backends import Backend, Compressed
from harness.backends.round_to_nearest import RoundToNearest
from harness.errors import BackendError, PlanError
from harness.modules.linears import linears
from harness.plan import make_plan
from harness.testing import BackendConformance
from tests.helpers.number_formats import INT8_INPUTS, named

torch.set_num_threads(1)
NOT_PASSED = (AssertionError, pytest.fail.Exception)
Damage = Callable[[Compressed], Compressed]


class Kit(BackendConformance):
    backend = "mine"
    ladder = ({"bits": 8}, {"bits": 2})


def kit(monkeypatch: pytest.MonkeyPatch, backend: type[Backend], **declared: Any) -> BackendConformance:
    """The cases of a backend that is found under the name "mine"."""
    load = plugins.load
    monkeypatch.setattr(backend, "kind", "mine")
    monkeypatch.setattr(plugins, "load", lambda base, name: backend if name == "mine" else load(base, name))
    made = type("MyKit", (Kit,), declared)()
    assert isinstance(made, Kit)
    return made


def damaging(damage: Damage) -> type[Backend]:
    """Round to nearest, and then something that must not be."""

    class Damaged(RoundToNearest):
        """Rounds, and damages."""

        def compress(self, model: PreTrainedModel, tokenizer: Any, calibration: Sequence[Tensor]) -> Compressed:
            return damage(super().compress(model, tokenizer, calibration))

    return Damaged


def described(**changes: Any) -> Damage:
    """Say something else of the first module."""

    def damage(done: Compressed) -> Compressed:
        first, *others = done.modules
        return Compressed(done.model, (first.model_copy(update=changes), *others))

    return damage


def first_mlp(done: Compressed) -> LlamaMLP:
    mlp = done.model.get_submodule("model.layers.0.mlp")
    assert isinstance(mlp, LlamaMLP)
    return mlp


def noise(done: Compressed) -> Compressed:
    gate = first_mlp(done).gate_proj.weight
    gate.data += 0.01 * torch.randn_like(gate)
    return done


def seed(done: Compressed) -> Compressed:
    torch.manual_seed(0)
    return done


def threads(done: Compressed) -> Compressed:
    torch.set_num_threads(2)
    return done


def ruined(done: Compressed) -> Compressed:
    for stated in done.modules[:4]:
        done.model.get_parameter(f"{stated.module}.weight").data.zero_()
    return done


def undescribed(done: Compressed) -> Compressed:
    return Compressed(done.model)


def inputs_are_rounded(done: Compressed) -> Compressed:
    return Compressed(done.model, done.modules, activations={done.modules[0].module: INT8_INPUTS})


def bypassed(done: Compressed) -> Compressed:
    """A layer that the MLP no longer calls."""
    mlp = first_mlp(done)
    mlp.forward = lambda x: mlp.down_proj(  # type: ignore[method-assign]
        functional.silu(functional.linear(x, mlp.gate_proj.weight)) * mlp.up_proj(x)
    )
    return done


def without_cache(done: Compressed) -> Compressed:
    forward = done.model.forward
    done.model.forward = lambda *a, past_key_values=None, **named: forward(*a, **named)
    return done


def scaled_together(done: Compressed) -> Compressed:
    """Inputs are rounded with one scale for all that is computed together."""
    for _, module in linears(done.model):
        module.register_forward_pre_hook(lambda _, arguments: (_rounded(arguments[0]),))
    return done


def _rounded(x: Tensor) -> Tensor:
    step = x.abs().max() / 127
    return (x / step).round() * step


def in_float32(done: Compressed) -> Compressed:
    done.model.float()
    return done


def head_without_notice(done: Compressed) -> Compressed:
    head = done.model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach() * 1.001, requires_grad=False)
    return done


MISTAKES: list[tuple[Damage, str]] = [
    (noise, "test_the_same_settings_give_the_same_bytes"),
    (noise, "test_nothing_global_changes"),
    (noise, "test_every_description_fits_its_module"),
    (seed, "test_nothing_global_changes"),
    (threads, "test_nothing_global_changes"),
    (ruined, "test_fine_settings_change_little"),
    (ruined, "test_conv1d_works_or_is_refused"),
    (undescribed, "test_it_quantizes_what_it_says"),
    (undescribed, "test_the_harness_takes_it"),
    (inputs_are_rounded, "test_it_quantizes_what_it_says"),
    (described(module="model.layers.7"), "test_every_description_fits_its_module"),
    (described(bits_per_weight=4.0), "test_every_description_fits_its_module"),
    (described(stored_bytes=17), "test_every_description_fits_its_module"),
    (described(parameters=3), "test_every_description_fits_its_module"),
    (described(backend="round_to_nearest"), "test_every_description_fits_its_module"),
    (described(format=named("int2", granularity="group", group_size=32)), "test_every_description_fits_its_module"),
    (bypassed, "test_hooks_hear_every_decoder_block"),
    (without_cache, "test_the_kv_cache_is_usable"),
    (without_cache, "test_it_generates_what_it_predicts"),
    (scaled_together, "test_a_text_is_read_alike_in_any_company"),
    (in_float32, "test_bfloat16_works_or_is_refused"),
    (head_without_notice, "test_a_tied_head_stays_sound"),
]


@pytest.mark.parametrize(("damage", "case"), MISTAKES)
def test_a_mistake_fails_its_case(damage: Damage, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = torch.get_num_threads()
    try:
        with pytest.raises((*NOT_PASSED, BackendError)):
            getattr(kit(monkeypatch, damaging(damage)), case)()
    finally:
        torch.set_num_threads(number)


CASES = sorted({case for _, case in MISTAKES})


@pytest.mark.parametrize("case", CASES)
def test_without_a_mistake_the_case_passes(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    getattr(kit(monkeypatch, damaging(lambda done: done)), case)()


class Open(RoundToNearest):
    """Takes any key."""

    model_config = ConfigDict(extra="ignore")


class Loose(RoundToNearest):
    """Takes any value."""

    bits: Any = 8
    """Any."""


class Silent(RoundToNearest):
    """Has a field that nobody explains."""

    other: int = 1


class Changing(RoundToNearest):
    """Can be changed."""

    model_config = ConfigDict(frozen=False)


class Forgetful(RoundToNearest):
    """Does not give all settings back."""

    @model_serializer
    def _nothing(self) -> dict[str, Any]:
        return {"bits": 3}


class Inherited(Backend):
    """Has no compress."""


class Headline(RoundToNearest):
    """No sentence"""


class Silencing(RoundToNearest):
    """Takes NaN for 0."""

    def compress(self, model: PreTrainedModel, tokenizer: Any, calibration: Sequence[Tensor]) -> Compressed:
        for _, module in linears(model):
            module.weight.data.nan_to_num_(posinf=0)
        return super().compress(model, tokenizer, calibration)


class Lenient(RoundToNearest):
    """Forgives patterns that match nothing."""

    def select_layers(self, model: PreTrainedModel) -> list[Any]:
        return RoundToNearest(bits=8).select_layers(model)


class Patching(RoundToNearest):
    """Changes the classes that the original is made of."""

    def compress(self, model: PreTrainedModel, tokenizer: Any, calibration: Sequence[Tensor]) -> Compressed:
        forward: Any = LlamaMLP.forward
        LlamaMLP.forward = lambda self, x: forward(self, x) * 1.01  # type: ignore[method-assign]
        return super().compress(model, tokenizer, calibration)


class Rough(RoundToNearest):
    """Says that it only prepares."""

    quantizes: ClassVar[tuple[Any, ...]] = ()


class Sly(RoundToNearest):
    """Rounds weights, and says that it does not."""

    quantizes: ClassVar[tuple[Any, ...]] = ("activations",)

    def compress(self, model: PreTrainedModel, tokenizer: Any, calibration: Sequence[Tensor]) -> Compressed:
        done = super().compress(model, tokenizer, calibration)
        return Compressed(done.model, activations={module.module: INT8_INPUTS for module in done.modules})


DEFECTS: list[tuple[type[Backend], str]] = [
    (Open, "test_an_unknown_setting_is_refused"),
    (Loose, "test_settings_of_a_wrong_type_are_refused"),
    (Silent, "test_it_says_what_it_does"),
    (Headline, "test_it_says_what_it_does"),
    (Inherited, "test_it_is_found_by_its_name"),
    (Changing, "test_settings_cannot_be_changed"),
    (Forgetful, "test_settings_survive_json"),
    (Patching, "test_the_original_stays_as_it_is"),
    (Lenient, "test_a_pattern_that_matches_nothing_is_refused"),
    (Sly, "test_it_quantizes_what_it_says"),
    (Rough, "test_what_quantizes_nothing_changes_nothing"),
]


@pytest.mark.parametrize(("backend", "case"), DEFECTS)
def test_a_defect_fails_its_case(backend: type[Backend], case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaMLP, "forward", LlamaMLP.forward)
    with pytest.raises(NOT_PASSED):
        getattr(kit(monkeypatch, backend), case)()


def test_weights_that_are_not_finite_must_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NOT_PASSED):
        kit(monkeypatch, Silencing).test_a_weight_that_is_not_finite_is_refused(
            "model.layers.1.mlp.down_proj", float("nan")
        )


def test_the_wrong_module_must_not_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Guessing(Silencing):
        """Names any module."""

        def compress(self, model: PreTrainedModel, tokenizer: Any, calibration: Sequence[Tensor]) -> Compressed:
            raise BackendError("mine: model.layers.0.mlp.up_proj: NaN")

    with pytest.raises(AssertionError):
        kit(monkeypatch, Guessing).test_a_weight_that_is_not_finite_is_refused(
            "model.layers.1.mlp.down_proj", float("nan")
        )


def test_a_ladder_that_does_not_descend_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    upside_down = kit(monkeypatch, damaging(lambda done: done), ladder=({"bits": 2}, {"bits": 8}))
    with pytest.raises(AssertionError, match="does not rise along the ladder"):
        upside_down.test_coarser_settings_change_more()


def test_models_that_are_declared_as_saved_must_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetting(RoundToNearest):
        """Saves other weights."""

        def save(self, model: PreTrainedModel, folder: Path) -> None:
            weight = model.get_submodule("model.layers.0.mlp.gate_proj").weight
            assert isinstance(weight, nn.Parameter)
            kept = weight.data.clone()
            weight.data.zero_()
            super().save(model, folder)
            weight.data.copy_(kept)

    class Repacking(RoundToNearest):
        """Changes its weights while they are saved."""

        def save(self, model: PreTrainedModel, folder: Path) -> None:
            super().save(model, folder)
            weight = model.get_submodule("model.layers.0.mlp.gate_proj").weight
            assert isinstance(weight, nn.Parameter)
            weight.data.mul_(2)

    (good, lost, changed) = (tmp_path / name for name in ("good", "lost", "changed"))
    for folder in (good, lost, changed):
        folder.mkdir()
    said: dict[str, Any] = {"reloads": ({"bits": 8},)}
    kit(monkeypatch, RoundToNearest, **said).test_saved_and_loaded_it_computes_the_same(good)
    with pytest.raises(AssertionError, match="loaded again, logits move"):
        kit(monkeypatch, Forgetting, **said).test_saved_and_loaded_it_computes_the_same(lost)
    with pytest.raises(AssertionError, match="saving changes the weights"):
        kit(monkeypatch, Repacking, **said).test_saved_and_loaded_it_computes_the_same(changed)


def test_a_dtype_that_is_declared_as_refused_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        kit(monkeypatch, RoundToNearest, dtypes=("float32",)).test_bfloat16_works_or_is_refused()


def test_settings_that_are_declared_as_refused_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.fail.Exception, match="accepted"):
        kit(monkeypatch, Lenient, refused=({"bits": 3},)).test_settings_that_make_no_sense_are_refused()


def test_a_backend_without_its_library_is_skipped_but_for_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Needy(RoundToNearest):
        """Needs what nobody has."""

        requires = ("no_such_library", "nor_this_one")

    cases = kit(monkeypatch, Needy)
    cases.test_a_missing_library_is_named_with_what_installs_it(tmp_path, monkeypatch)
    with pytest.raises(PlanError, match=r"pip install no_such_library nor_this_one\)"):
        make_plan(cases.variant_file(tmp_path, {"bits": 8}))
    cases.test_a_variant_file_can_name_it(tmp_path, monkeypatch)
    with pytest.raises(pytest.skip.Exception, match="no_such_library"):
        cases.test_fine_settings_change_little()


def test_an_import_of_a_model_library_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "heavy-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: heavy\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[harness.backends]\nheavy = heavy:Heavy\n")
    text = "import torch\nfrom harness.backends import Backend\nclass Heavy(Backend):\n    'Is slow to list.'\n"
    text += "    def compress(self, model, tokenizer, calibration): ...\n"
    (tmp_path / "heavy.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    cases = kit(monkeypatch, RoundToNearest)
    monkeypatch.setattr(type(cases), "backend", "heavy")
    monkeypatch.setattr(type(cases), "plugin", lambda self: RoundToNearest)
    with pytest.raises(AssertionError, match="import inside compress"):
        cases.test_importing_it_loads_no_model_library()
