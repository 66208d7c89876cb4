"""The engine ``llama_cpp``: runs GGUF files with llama.cpp's own kernels, which multiply the stored codes.

It gives no access to modules: a measure that needs them is Skipped. Its CPU kernels round the inputs of quantized
layers to 8 bits in blocks of 32 (256 for the K formats), so a model with outlier channels loses more than its
dequantized weights suggest.

llama.cpp is compiled at installation (``pip install "lm-shipcheck[llamacpp]"``, ten minutes on two cores), so it is
only installed on request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.engines import CheckpointKind, Engine
from harness.errors import MissingDependencyError, ModelError
from harness.records import Identity, ModelSpec, Note, Served
from harness.records.plan import Dtype

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from harness.models.gguf_file import GgufFile
    from harness.models.loaded import LoadedModel

FIRST_ROOM = 512
"""Initial context size in tokens; it grows with the texts, because its memory is allocated at once."""


class LlamaCpp(Engine):
    """Runs GGUF files with llama.cpp's own kernels on CPU; logits only, no access to modules."""

    reads: ClassVar[tuple[CheckpointKind, ...]] = ("gguf",)
    serves: ClassVar[tuple[Served, ...]] = ("generation", "cache")
    logits_dtype: ClassVar[Dtype | None] = "float32"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    requires: ClassVar[tuple[str, ...]] = ("llama_cpp",)
    extra: ClassVar[str] = "llamacpp"
    install_note: ClassVar[str] = "which compiles for ten minutes"

    def open(self, spec: ModelSpec, name: str, tokenizer: PreTrainedTokenizerBase | None) -> LoadedModel:
        """Load a GGUF file with llama.cpp, with the file's own tokenizer or the given one."""
        from harness.models.fingerprints import fingerprint_file
        from harness.models.gguf import link_in_own_folder, load_gguf_tokenizer
        from harness.models.gguf_file import module_formats_of, read_gguf
        from harness.models.gguf_values import find_non_finite_values
        from harness.models.identity import config_sha256, tokenizer_sha256
        from harness.models.language_model import LogitsModel
        from harness.models.loaded import LoadedModel
        from harness.models.sources import resolve
        from harness.modules.non_finite import note_non_finite

        _library()
        source = resolve(spec)
        path = source.file
        if path is None:
            reason = "engine: llama_cpp reads only GGUF files, and this is not one; name a GGUF file (or set file:)"
            raise ModelError(f"{spec.model}: {reason}")
        gguf, fingerprint = read_gguf(path), fingerprint_file(path)
        with link_in_own_folder(path) as folder:
            own, notes = load_gguf_tokenizer(gguf, name, tokenizer, folder)
        config = _config(gguf, path)
        model = LlamaCppModel(path, config.vocab_size, config.max_position_embeddings, config.eos_token_id)
        model.make_room(1)  # Opened now, so that what cannot be read is refused before anything is measured.
        identity = Identity(
            name=name,
            source=spec.model,
            architecture=f"{gguf.architecture} (GGUF)",
            revision=source.revision,
            dtype="float32",
            device="cpu",
            attention=f"llama.cpp {_version()}",
            parameters=sum(tensor.values for tensor in gguf.tensors),
            weights_sha256=fingerprint.sha256,
            config_sha256=config_sha256(config),
            tokenizer_sha256=tokenizer_sha256(own),
            modules=module_formats_of(gguf),
        )
        non_finite, unknown = find_non_finite_values(path)
        notes = (_kernel_note(name, gguf), *notes, *_note_unknown(name, unknown), *note_non_finite(name, non_finite))
        files = (fingerprint,)
        return LoadedModel(name, LogitsModel(model), own, identity, files, notes, non_finite=non_finite)


class LlamaCppModel:
    """Logits of llama.cpp for token ids; float32, on CPU.

    Every scored text is processed from its beginning, so that numbers do not depend on earlier texts; the library's
    cache is used only while one text is being generated.
    """

    def __init__(self, path: Path, vocabulary: int, positions: int, end_token: int | None) -> None:
        self._path, self.vocabulary, self.positions = path, vocabulary, positions
        self.end_tokens = () if end_token is None else (end_token,)
        self._library: Any = None
        self._room = 0
        self._read: tuple[int, ...] = ()

    def text_logits(self, ids: Sequence[int], last: int) -> Tensor:
        """Logits [last, V] at the last ids. Raises ModelError if the library cannot process them."""
        import torch

        whole, continued = tuple(ids), len(ids) - last
        self.make_room(len(whole))
        if not continued or self._read != whole[:continued]:
            self._library.reset()
            continued = 0
        try:
            self._library.eval(list(whole[continued:]))
        except (RuntimeError, ValueError) as error:
            self._read = ()
            raise ModelError(f"{self._path}: llama.cpp could not read {len(whole)} tokens: {error}") from error
        self._read = whole
        return torch.from_numpy(self._library.scores[len(whole) - last : len(whole)]).clone().float()

    def make_room(self, tokens: int) -> None:
        """Open a context of at least ``tokens`` tokens; a new one starts empty. Raises ModelError."""
        if tokens <= self._room:
            return
        room = min(self.positions, max(FIRST_ROOM, 1 << (tokens - 1).bit_length()))
        if tokens > room:
            raise ModelError(f"{self._path}: a text of {tokens} tokens exceeds the model's {self.positions} positions")
        import torch

        self.close()
        try:
            self._library = _library().Llama(
                model_path=str(self._path),
                n_ctx=room,
                n_threads=torch.get_num_threads(),
                n_threads_batch=torch.get_num_threads(),
                n_gpu_layers=0,
                logits_all=True,
                verbose=False,
            )
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ModelError(f"{self._path}: llama.cpp cannot open it: {error}") from error
        self._room = room

    def close(self) -> None:
        """Free the library's memory."""
        if self._library is not None:
            self._library.close()
        self._library, self._room, self._read = None, 0, ()


def _kernel_note(name: str, gguf: GgufFile) -> Note:
    text = (
        f"{name}: {gguf.path.name} ({', '.join(gguf.types)}) is computed by llama.cpp {_version()} with its own "
        f"kernels ({_kernels()}), which round the inputs of quantized layers to 8 bits in blocks, and a KV cache of "
        "float16; the result holds for these kernels; its modules cannot be observed, so layer errors and outliers are "
        "not measured"
    )
    return Note(topic="gguf", text=text)


def _note_unknown(name: str, types: Sequence[str]) -> Iterator[Note]:
    """A warning if values of the file cannot be looked at."""
    if types:
        text = (
            f"{name}: the library gguf cannot read the tensor types {', '.join(types)}, so nothing shows whether they "
            "hold NaN where no document reaches; install a newer gguf"
        )
        yield Note(topic="non-finite weights", text=text, level="warn")


def _config(gguf: GgufFile, path: Path) -> PreTrainedConfig:
    """The configuration in the file: sizes and special tokens."""
    context = gguf.of_architecture("context_length")
    if not isinstance(context, int):
        raise ModelError(f"{path}: does not declare its number of positions ({gguf.architecture}.context_length)")
    from transformers import PreTrainedConfig

    make: Any = PreTrainedConfig
    config: PreTrainedConfig = make(
        vocab_size=_vocabulary(gguf, path),
        max_position_embeddings=context,
        bos_token_id=gguf.values.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=gguf.values.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=gguf.values.get("tokenizer.ggml.padding_token_id"),
    )
    return config


def _vocabulary(gguf: GgufFile, path: Path) -> int:
    """Number of rows of the embedding table: the logits per token."""
    table = next((tensor for tensor in gguf.tensors if tensor.name == "token_embd.weight"), None)
    if table is None:
        raise ModelError(f"{path}: has no token_embd.weight, so it is not a language model for llama.cpp")
    return table.shape[0]


def _library() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        install = 'pip install "lm-shipcheck[llamacpp]" (it is compiled, which takes ten minutes)'
        raise MissingDependencyError("llama-cpp-python", "engine: llama_cpp", install) from error
    return llama_cpp


def _kernels() -> str:
    """What the kernels in use are built for, in llama.cpp's own words: "CPU : AVX2, FMA, REPACK"."""
    describe = getattr(_library(), "llama_print_system_info", None)
    if describe is None:
        return "this version of the library does not say which"
    said = describe().decode("utf-8", "replace")
    used = (part.strip().removesuffix("= 1").strip() for part in said.split("|") if not part.strip().endswith("= 0"))
    return ", ".join(filter(None, used)) or "none that the library names"


def _version() -> str:
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return str(getattr(_library(), "__version__", "of unknown version"))
