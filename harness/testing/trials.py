"""Compressing small models the way the harness does it, and measuring the result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from harness.backends import Backend, Compressed, Materials
from harness.models.identity import identify, weights_sha256
from harness.models.language_model import TransformersModel
from harness.models.loaded import LoadedModel
from harness.modules.inspection import module_formats, named_tensors
from harness.modules.linears import Linear, weight_of
from harness.planning.specs import Plan, VariantSpec
from harness.records import ModelSpec, ModuleFormat, TrainingSpec
from harness.running.variant import make_variant
from harness.testing.models import random_documents, randomize_gains, tiny_gpt2, tiny_llama, tiny_tokenizer
from harness.training.data import Training

ModelKind = Literal["llama", "tied", "gpt2"]
SPREAD = 0.15
"""Standard deviation of random weights that makes attention and predictions as sharp as in trained models."""
TEXTS = 6


@dataclass(frozen=True)
class Trial:
    """A model and the compressed copy of it."""

    reference: PreTrainedModel
    done: Compressed

    @property
    def model(self) -> PreTrainedModel:
        """The compressed model."""
        return self.done.model


def make_model(kind: ModelKind, config: Mapping[str, Any], dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A model that is ready to be measured. config: changes to that of the two Llama models."""
    with torch.random.fork_rng(devices=[]):
        if kind == "gpt2":
            model: PreTrainedModel = tiny_gpt2(initializer_range=SPREAD)
        else:
            model = tiny_llama(tied=kind == "tied", **{"initializer_range": SPREAD, **config})
    moved: Any = randomize_gains(model)
    return _freeze(moved.to(dtype=dtype, device=device))


def calibration_for(step: Backend) -> Sequence[Tensor]:
    """The calibration documents of a step: none unless it calibrates."""
    return random_documents(8, 24, seed=1) if step.calibrates else ()


def materials_for(step: Backend, reference: PreTrainedModel) -> Materials:
    """What the step needs: calibration documents if it calibrates, a few texts and optimizer steps if it trains."""
    return Materials(calibration_for(step), training_for(reference) if step.trains else None)


def training_for(teacher: PreTrainedModel, steps: int = 4) -> Training:
    """Random texts to train on, towards ``teacher``."""
    texts = random_documents(24, 24, seed=2)
    spec = TrainingSpec(data="random", documents=16, held_out=8, tokens=24, steps=steps)
    return Training(spec, texts[:16], texts[16:], teacher, weights_sha256(teacher))


def compress(step: Backend, reference: PreTrainedModel, chance: int = 0) -> Trial:
    """Compress a copy. chance: the state of the global random generators, on which nothing may depend."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chance)
        done = step.apply(copy.deepcopy(reference), tiny_tokenizer(), materials_for(step, reference))
    _freeze(done.model)
    return Trial(reference, done)


def as_variant(
    step: Backend,
    reference: PreTrainedModel,
    calibration: Sequence[Tensor],
    after: Sequence[Backend] = (),
    training: Training | None = None,
) -> LoadedModel:
    """The variant that ``harness check`` would measure, with all its checks. after: further steps. training: in place
    of a few random texts."""
    tokenizer, device = tiny_tokenizer(), str(reference.device)
    dtype: Any = str(reference.dtype).removeprefix("torch.")
    formats = module_formats(reference, {})
    identity = identify("reference", reference, tokenizer, "tiny", None, dtype, device, formats)
    plan = Plan.model_construct(
        name="variant",
        source="",
        reference=ModelSpec.model_construct(model="tiny", dtype=dtype, device=device),
        variant=VariantSpec(compress=(step, *after)),
        suites=(),
        gates=(),
    )
    loaded = LoadedModel("reference", TransformersModel(reference), tokenizer, identity, ())
    return make_variant(plan, loaded, calibration, training or materials_for(step, reference).training)


def save_and_load(step: Backend, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model that transformers loads from the folder that the backend writes."""
    folder.mkdir()
    step.save(model, folder)
    return _freeze(AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype, local_files_only=True))


@torch.no_grad()
def logits(model: PreTrainedModel, texts: int = TEXTS) -> Tensor:
    """[B, T, V] in float64, of the first few of the texts."""
    found: Tensor = model(input_ids=_texts(model)[:texts], use_cache=False).logits
    return found.double().cpu()


def divergence(trial: Trial) -> float:
    """Mean KL(reference ‖ compressed) in nats per token."""
    reference, found = (functional.log_softmax(logits(model), -1) for model in (trial.reference, trial.model))
    return float((reference.exp() * (reference - found)).sum(-1).mean())


def deviation(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, in standard deviations of the expected values."""
    return float((actual - expected).abs().max() / expected.std())


@torch.no_grad()
def shortfall(model: PreTrainedModel) -> float:
    """How far the tokens of a greedy decoding are below the largest logits of a single pass over the same text.

    In standard deviations of the logits; 0 if every token is the one that the pass predicts.
    """
    asked: Any = model
    prompt_1T = _texts(model)[:1, :12]
    ids_1T: Tensor = asked.generate(
        prompt_1T, attention_mask=torch.ones_like(prompt_1T), max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    before = prompt_1T.shape[1] - 1
    logits_TV: Tensor = model(input_ids=ids_1T, use_cache=False).logits[0, before:-1].double()
    written_T = logits_TV.gather(1, ids_1T[0, before + 1 :, None])[:, 0]
    return float((logits_TV.amax(-1) - written_T).max() / logits_TV.std())


@torch.no_grad()
def run_in_two_parts(model: PreTrainedModel) -> Tensor:
    """Logits [B, V] of the last token, computed alone with a cache of the others."""
    ids_BT = _texts(model)
    first = model(input_ids=ids_BT[:, :-1], use_cache=True)
    assert first.past_key_values is not None, "with use_cache=True the model gives no past_key_values"
    second = model(input_ids=ids_BT[:, -1:], past_key_values=first.past_key_values, use_cache=True)
    found: Tensor = second.logits[:, -1]
    return found.double().cpu()


@torch.no_grad()
def output_shapes(model: PreTrainedModel, names: Sequence[str]) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the outputs of each module in one forward pass, as hooks see them."""
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}
    handles = [model.get_submodule(name).register_forward_hook(_note(shapes[name])) for name in names]
    try:
        logits(model)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def list_changed_weights(trial: Trial) -> list[str]:
    """Tensors of the reference that differ in the compressed model, or are missing."""
    before, after = dict(named_tensors(trial.reference)), dict(named_tensors(trial.model))
    return [name for name, tensor in before.items() if name not in after or not tensor.equal(after[name])]


def check_size(stated: ModuleFormat, reference: PreTrainedModel) -> None:
    """Fail if parameters, bits per weight and bytes of a linear layer contradict each other."""
    module = dict(reference.named_modules()).get(stated.module)
    if not isinstance(module, Linear):
        return
    weights, bias = weight_of(module).numel(), module.bias
    biases = 0 if bias is None else bias.numel()
    assert stated.parameters == weights + biases, f"{stated.module} has {weights + biases} parameters"
    least = stated.bits_per_weight * weights / 8
    most = least + biases * module.weight.element_size()
    assert least - 1 < stated.stored_bytes < most + 1, (
        f"{stated.module}: {stated.bits_per_weight:g} bits per weight are {least:g} bytes, not {stated.stored_bytes}"
    )


def spoil(model: PreTrainedModel, module: str, value: float) -> None:
    """Put a value into a weight of a module."""
    with torch.no_grad():
        weight_of(cast(Linear, model.get_submodule(module)))[3, 4] = value


@contextmanager
def forbid_global_changes() -> Iterator[None]:
    """Fail if the global state of torch is changed: random generators, threads, default dtype, gradients."""
    before = _state()
    yield
    changed = [name for name, value in _state().items() if value != before[name]]
    assert not changed, f"compress changes torch's global state: {', '.join(changed)}"


def _texts(model: PreTrainedModel) -> Tensor:
    """Token ids [B, T] on which no backend is calibrated."""
    return torch.stack(random_documents(TEXTS, 32, seed=2)).to(model.device)


def _freeze(model: PreTrainedModel) -> PreTrainedModel:
    frozen: Any = model
    frozen.eval().requires_grad_(False)
    return model


def _state() -> dict[str, object]:
    return {
        "state of the global random numbers": torch.random.get_rng_state().numpy().tobytes(),
        "number of threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "whether gradients are computed": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def _note(shapes: list[tuple[int, ...]]) -> Callable[[object, object, object], None]:
    def hook(_module: object, _arguments: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        assert isinstance(first, Tensor), f"a hook sees {type(output).__name__}, not a tensor"
        shapes.append(tuple(first.shape))

    return hook
