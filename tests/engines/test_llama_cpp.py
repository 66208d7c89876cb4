"""The engine llama.cpp: what drives models drives it, and gets the library's logits for exactly the ids it gives.

Where llama.cpp is not compiled, a stand-in of the same interface computes with dequantized weights; it cannot tell
whether the real library reads what is given to it, which the last tests do where it is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.engines.llama_cpp import LlamaCpp
from harness.errors import MissingDependencyError, ModelError
from harness.lockstep.decoder import Decoder
from harness.lockstep.survey import survey
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from harness.modules.layer_pairs import SAME_NAMES
from harness.planning.specs import VariantSpec
from harness.probes import Context
from harness.probes.timings import Timings
from harness.records import ModelSpec
from harness.running.variant import make_variant
from tests.helpers.gguf_files import bpe_tokens, write_gguf
from tests.helpers.llama_cpp_stand_in import Llama, install
from tests.helpers.tiny_models import save, tiny_llama
from tests.models.test_loading import plan_of

pytest.importorskip("gguf")

SIZES: dict[str, Any] = {"intermediate_size": 96}
IDS = torch.tensor([[0, 5, 9, 2, 40, 33, 7, 90]])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Llama]]:
    yield install(monkeypatch)
    Llama.opened.clear()


@pytest.fixture
def reference(tmp_path: Path) -> LoadedModel:
    return load(ModelSpec(model=str(save(tiny_llama(**SIZES), tmp_path / "model"))), "reference")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tiny_llama(**SIZES), tmp_path / "q.gguf", "Q8_0")


def variant_of(reference: LoadedModel, path: Path, **fields: Any) -> LoadedModel:
    settings = {"model": str(path), "engine": LlamaCpp(), **fields}
    return make_variant(plan_of(Path(reference.identity.source), VariantSpec(**settings)), reference, ())


def driven(loaded: LoadedModel) -> Any:
    """The model as libraries of transformers drive it."""
    return loaded.language_model.for_transformers()


@pytest.mark.usefixtures("stand_in")
def test_logits_are_the_librarys_for_every_row_of_a_batch(reference: LoadedModel, file: Path) -> None:
    variant, same = variant_of(reference, file), load(ModelSpec(model=str(file)), "x").model
    ids = torch.tensor([[0, 5, 9, 2, 4], [0, 7, 7, 0, 0], [0, 1, 2, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    found = driven(variant)(ids, attention_mask=mask).logits
    for row, length in enumerate((5, 3, 4)):
        with torch.no_grad():
            wanted = same(ids[row : row + 1, :length]).logits[0]
        assert torch.equal(found[row, :length], wanted)
        assert not found[row, length:].any()
    left = driven(variant)(ids[1:2, [3, 4, 0, 1, 2]], attention_mask=torch.tensor([[0, 0, 1, 1, 1]])).logits
    assert torch.equal(left[0, 2:], found[1, :3])
    assert torch.equal(driven(variant)(ids[:1], logits_to_keep=2).logits, found[:1, -2:])


@pytest.mark.usefixtures("stand_in")
def test_greedy_writing_is_that_of_the_dequantized_model(reference: LoadedModel, file: Path) -> None:
    variant, same = variant_of(reference, file), load(ModelSpec(model=str(file)), "x").model
    ids = torch.tensor([[0, 0, 9, 2], [0, 4, 5, 6]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    settings = {"attention_mask": mask, "max_length": 12, "do_sample": False, "eos_token_id": 95, "pad_token_id": 95}
    writers: tuple[Any, Any] = (driven(variant), same)
    found, wanted = (model.generate(input_ids=ids, use_cache=True, **settings) for model in writers)
    assert found.tolist() == wanted.tolist()


def test_writing_one_text_reads_every_token_once(reference: LoadedModel, file: Path, stand_in: type[Llama]) -> None:
    variant = variant_of(reference, file)
    stand_in.opened[-1].read = 0
    settings: dict[str, Any] = {"max_length": 20, "do_sample": False, "eos_token_id": 95, "pad_token_id": 95}
    written = driven(variant).generate(input_ids=IDS, **settings)
    assert stand_in.opened[-1].read <= written.shape[1]


def test_scoring_never_depends_on_what_was_read_before(
    reference: LoadedModel, file: Path, stand_in: type[Llama]
) -> None:
    variant = variant_of(reference, file)
    stand_in.opened[-1].read = 0
    driven(variant)(IDS[:, :5])
    driven(variant)(IDS[:, :6])
    assert stand_in.opened[-1].read == 5 + 6


def test_the_context_grows_up_to_what_the_model_was_made_for(
    tmp_path: Path, reference: LoadedModel, stand_in: type[Llama]
) -> None:
    long = tiny_llama(**SIZES, max_position_embeddings=1000)
    variant = variant_of(reference, write_gguf(long, tmp_path / "long.gguf"))
    assert [each.room for each in stand_in.opened] == [512]
    driven(variant)(torch.zeros(1, 700, dtype=torch.int64))
    assert [each.room for each in stand_in.opened] == [512, 1000]
    with pytest.raises(ModelError, match="a text of 1001 tokens exceeds the model's 1000 positions"):
        driven(variant)(torch.zeros(1, 1001, dtype=torch.int64))


@pytest.mark.usefixtures("stand_in")
def test_the_identity_is_that_of_the_file_with_real_kernels(reference: LoadedModel, file: Path, tmp_path: Path) -> None:
    identity = variant_of(reference, file).identity
    assert not identity.simulated
    assert (identity.dtype, identity.device, identity.architecture) == ("float32", "cpu", "llama (GGUF)")
    up = next(module for module in identity.modules if module.module == "blk.0.ffn_up")
    assert (up.format.name, up.bits_per_weight, up.kernel, up.role, up.backend) == (
        "Q8_0",
        8.5,
        "real",
        "linear",
        "gguf",
    )
    other = write_gguf(tiny_llama(**SIZES, seed=1), tmp_path / "other.gguf", "Q8_0")
    assert variant_of(reference, other).identity.weights_sha256 != identity.weights_sha256
    assert identity.attention.startswith("llama.cpp ")


@pytest.mark.usefixtures("stand_in")
def test_the_note_names_the_kernels_in_use(reference: LoadedModel, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (note,) = [note for note in variant_of(reference, file).notes if note.topic == "gguf"]
    assert "its own kernels (CPU : SSE3, FMA, REPACK), which round" in note.text
    assert "the result holds for these kernels" in note.text
    monkeypatch.delattr(sys.modules["llama_cpp"], "llama_print_system_info")
    (note,) = [note for note in variant_of(reference, file).notes if note.topic == "gguf"]
    assert "(this version of the library does not say which)" in note.text


@pytest.mark.usefixtures("stand_in")
def test_the_shared_pass_pairs_no_module_and_says_why(reference: LoadedModel, file: Path) -> None:
    variant = variant_of(reference, file)
    with pytest.raises(ModelError, match="its engine gives no access to modules and weights"):
        _ = variant.model
    sides = [Decoder(side.name, side.language_model) for side in (reference, variant)]
    with torch.inference_mode():
        for side in sides:
            side.prepare(IDS)
        layout = survey(sides[0], sides[1:], IDS, 96, [SAME_NAMES])
    assert sides[1].whole
    assert layout.unpaired[0]["model.layers.0"] == "only the reference runs it"
    assert set(layout.unpaired[0]) >= {site.module for site in layout.outputs}


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.frames: dict[str, Any] = {}

    def done(self, unit: str) -> bool:
        return False

    def commit(self, unit: str, frames: Any, snapshots: Any = None) -> None:
        self.frames |= frames

    def read(self, table: str, columns: Any = None) -> Any:
        return self.frames.get(table)

    def read_parts(self, table: str) -> Any:
        raise AssertionError("timings have no sums")


class Silent:
    """Progress that nobody sees."""

    def step(self, what: str, done: int, of: int) -> None:
        """Nothing."""


@pytest.mark.usefixtures("stand_in")
def test_the_clock_times_prompts_and_writing(reference: LoadedModel, file: Path) -> None:
    variant, sink = variant_of(reference, file), Kept()
    probe = Timings(repeats=1, warmup=1, prompt_tokens=8, new_tokens=3)
    probe.observe(Context(reference, [variant], [sink], Silent()))
    rows = sink.frames["timings"]
    assert set(rows["phase"]) == {"prefill", "first_token", "decode"}
    assert not rows["simulated"].any()


def test_without_the_library_it_says_how_to_get_it(
    reference: LoadedModel, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingDependencyError, match=r'llama-cpp-python.*lm-shipcheck\[llamacpp\]".*ten minutes'):
        variant_of(reference, file)


@pytest.mark.usefixtures("stand_in")
def test_what_is_no_gguf_file_is_refused(reference: LoadedModel) -> None:
    with pytest.raises(ModelError, match="engine: llama_cpp reads only GGUF files, and this is not one"):
        variant_of(reference, Path(reference.identity.source))


def test_a_library_that_fails_is_an_error_of_the_model(
    reference: LoadedModel, file: Path, stand_in: type[Llama], monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = variant_of(reference, file)
    monkeypatch.setattr(stand_in, "eval", lambda self, tokens: (_ for _ in ()).throw(RuntimeError("llama_decode 1")))
    with pytest.raises(ModelError, match=r"q\.gguf: llama\.cpp could not read 8 tokens: llama_decode 1"):
        driven(variant)(IDS)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("failed to load")

    monkeypatch.setattr(stand_in, "__init__", refuse)
    with pytest.raises(ModelError, match=r"q\.gguf: llama\.cpp cannot open it: failed to load"):
        variant_of(reference, file)


# --- the real library ---------------------------------------------------------------------------------------

compiled = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp is not compiled here")


@pytest.fixture
def pocket() -> LoadedModel:
    return load(ModelSpec(model="pocket"), "pocket")


def of_pocket(pocket: LoadedModel, path: Path, kind: str) -> Path:
    return write_gguf(pocket.model, path, kind, tokens=bpe_tokens(pocket.tokenizer))  # type: ignore[arg-type]


TEXT = "The fox and the crow met by the river. It was late."


@compiled
def test_llama_cpp_computes_the_model_of_the_file(pocket: LoadedModel, tmp_path: Path) -> None:
    variant = variant_of(pocket, of_pocket(pocket, tmp_path / "pocket.gguf", "F32"), tokenizer="reference")
    ids = torch.tensor([pocket.tokenizer(TEXT)["input_ids"]])
    found, wanted = driven(variant)(ids).logits, pocket.model(ids).logits
    assert (found - wanted).abs().max() < 0.02, "its KV cache holds float16"
    assert torch.equal(driven(variant)(ids).logits, found)
    together = driven(variant)(ids.repeat(2, 1)).logits
    assert torch.equal(together[1], found[0])


def rounded_to_eight_bits(_: torch.nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """What llama.cpp does to the input of a quantized product: INT8 with a float16 scale for 32 values (Q8_0)."""
    blocks = arguments[0].reshape(*arguments[0].shape[:-1], -1, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(scale > 0, blocks / scale, 0.0).round()
    return ((codes * scale.half().float()).reshape(arguments[0].shape),)


@compiled
# Sums in another order let a code of an input fall the other way now and then, which later tokens see.
@pytest.mark.parametrize(("kind", "near"), [("Q8_0", 0.001), ("Q4_0", 0.002)])
def test_its_kernels_round_the_inputs_of_quantized_products(
    kind: str, near: float, pocket: LoadedModel, tmp_path: Path
) -> None:
    import llama_cpp

    path = of_pocket(pocket, tmp_path / "pocket.gguf", kind)
    ids = pocket.tokenizer(TEXT)["input_ids"]
    floats = load(ModelSpec(model=str(path)), "floats", pocket.tokenizer).model
    with torch.no_grad():
        unrounded = floats(torch.tensor([ids])).logits[0].log_softmax(-1)
        for module in floats.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(rounded_to_eight_bits)
        wanted = floats(torch.tensor([ids])).logits[0].log_softmax(-1)
    f32 = 0
    library = llama_cpp.Llama(str(path), logits_all=True, n_ctx=512, n_threads=1, verbose=False, type_k=f32, type_v=f32)
    library.eval(ids)
    found = torch.tensor(library.scores[: len(ids)]).log_softmax(-1)
    apart, damage = ((found.exp() * (found - other)).sum(-1).mean() for other in (wanted, unrounded))
    assert abs(apart) < near
    assert damage > 2 * near, "outlier channels take the scale of their block"


@compiled
def test_llama_cpp_goes_on_where_it_stopped(pocket: LoadedModel, tmp_path: Path) -> None:
    variant = variant_of(pocket, of_pocket(pocket, tmp_path / "pocket.gguf", "F32"), tokenizer="reference")
    ids = torch.tensor([pocket.tokenizer("The fox and the crow")["input_ids"]])
    settings: dict[str, Any] = {"max_length": 24, "do_sample": False, "pad_token_id": 1}
    found, wanted = (driven(side).generate(input_ids=ids, **settings) for side in (variant, pocket))
    assert found.tolist() == wanted.tolist()
