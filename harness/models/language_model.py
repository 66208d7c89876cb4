"""The interface of every model, whichever engine computes it: its sizes, and the logits of token ids.

    LanguageModel ┬ TransformersModel   modules and tensors of transformers, which may be observed and changed
                  └ LogitsModel         around a TextModel: weights stay inside an engine, one method returns logits

Code that needs modules uses ``LanguageModel.modules`` and raises an error with the reason if there are none. Libraries
that drive models of transformers (lm-eval, ``generate``) use ``for_transformers``.

Legend: B texts, T positions, V logits of a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class LanguageModel(ABC):
    """A causal language model."""

    modules: PreTrainedModel | None = None
    """Its modules and tensors, if the engine gives access to them; else None."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Number of logits per token (V)."""

    @property
    def token_ids(self) -> int:
        """Number of token ids: they run from 0 to one less."""
        return self.vocabulary

    @property
    def positions(self) -> int | None:
        """Context length in tokens; None if it is not known."""
        return None

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids that end a text, as the checkpoint declares them."""
        return ()

    @property
    def device(self) -> torch.device:
        """Device of the token ids and logits."""
        return torch.device("cpu")

    @abstractmethod
    def logits(self, ids_BT: Tensor, mask_BT: Tensor | None = None, positions_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of int64 token ids; values are undefined where the mask is 0.

        positions_BT: position of each token in its text, if it differs from its index in the row (left padding).
        """

    @abstractmethod
    def for_transformers(self) -> PreTrainedModel:
        """The model with the interface of transformers, for libraries that call, generate and read its config."""


class TransformersModel(LanguageModel):
    """A model of transformers, whose modules can be observed, changed and saved."""

    modules: PreTrainedModel

    def __init__(self, model: PreTrainedModel) -> None:
        self.modules = model

    @property
    def vocabulary(self) -> int:
        """Number of outputs of the head; if the head does not declare it, the size in the config."""
        outputs = getattr(cast(Any, self.modules).get_output_embeddings(), "out_features", None)
        return outputs if isinstance(outputs, int) else int(self.modules.config.get_text_config().vocab_size)

    @property
    def token_ids(self) -> int:
        """Number of rows of the embedding table."""
        return int(cast(Any, self.modules).get_input_embeddings().num_embeddings)

    @property
    def positions(self) -> int | None:
        """``max_position_embeddings`` of the config."""
        stated = getattr(self.modules.config.get_text_config(), "max_position_embeddings", None)
        return stated if isinstance(stated, int) else None

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """``eos_token_id`` of the generation config: one id, or several."""
        declared = getattr(self.modules.generation_config, "eos_token_id", None)
        several = declared if isinstance(declared, list | tuple) else [declared]
        return tuple(token for token in several if isinstance(token, int))

    @property
    def device(self) -> torch.device:
        """Device of the embedding table."""
        return cast(Tensor, self.modules.get_input_embeddings().weight).device

    def logits(self, ids_BT: Tensor, mask_BT: Tensor | None = None, positions_BT: Tensor | None = None) -> Tensor:
        """One forward pass without a cache."""
        named = {} if positions_BT is None else {"position_ids": positions_BT}
        output = self.modules(input_ids=ids_BT, attention_mask=mask_BT, **named, use_cache=False, return_dict=True)
        return cast(Tensor, output.logits)

    def for_transformers(self) -> PreTrainedModel:
        """The model itself."""
        return self.modules


class TextModel(Protocol):
    """The interface that an engine implements if it keeps weights to itself: no modules, only logits."""

    @property
    def vocabulary(self) -> int:
        """Number of logits per token (V); token ids run from 0 to one less."""

    @property
    def positions(self) -> int | None:
        """Context length in tokens; None if it is not known."""

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids that end a text, as the checkpoint declares them; the tokenizer's end-of-text always does."""

    def text_logits(self, ids: Sequence[int], last: int) -> Tensor:
        """Logits [last, V] at the last ``last`` ids of one text; floats on CPU.

        ``last`` is the length of the text when it is scored, and less when it is continued: an engine may then reuse
        what it computed for the ids before. Raises ModelError if the engine cannot read the text.
        """


class LogitsModel(LanguageModel):
    """A model that an engine computes by itself, one text after another.

    Every scored text is processed alone and from its beginning, so that no logit depends on the rest of the batch.
    """

    def __init__(self, text_model: TextModel) -> None:
        self._text_model = text_model

    @property
    def vocabulary(self) -> int:
        """As the engine says."""
        return self._text_model.vocabulary

    @property
    def positions(self) -> int | None:
        """As the engine says."""
        return self._text_model.positions

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """As the engine says."""
        return self._text_model.end_tokens

    def logits(self, ids_BT: Tensor, mask_BT: Tensor | None = None, positions_BT: Tensor | None = None) -> Tensor:
        """Computes text by text; zeros where the mask is 0, which may be at the beginning or end."""
        return self._batch(ids_BT, mask_BT, (), ids_BT.shape[1])

    def for_transformers(self) -> PreTrainedModel:
        """A transformers model without weights that returns the engine's logits."""
        return _TransformersInterface(self)

    def _batch(self, ids_BT: Tensor, mask_BT: Tensor | None, before: tuple[int, ...], last: int) -> Tensor:
        """Logits [B, last, V] of the last positions of a batch, given the ids before."""
        mask = torch.ones_like(ids_BT) if mask_BT is None else mask_BT[:, -ids_BT.shape[1] :]
        rows = []
        for ids_T, mask_T in zip(ids_BT, mask.bool(), strict=True):
            kept_T = mask_T[-last:]
            logits_TV = torch.zeros(len(kept_T), self.vocabulary)
            if bool(kept_T.any()):
                logits_TV[kept_T] = self._text_model.text_logits((*before, *ids_T[mask_T].tolist()), int(kept_T.sum()))
            rows.append(logits_TV)
        return torch.stack(rows)


@dataclass(frozen=True)
class ReadIds:
    """Takes the place of a key-value cache, which stays inside the engine: the ids of the text processed so far."""

    ids: tuple[int, ...]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens processed so far."""
        return len(self.ids)


class _TransformersInterface(PreTrainedModel, GenerationMixin):
    """A LogitsModel with the interface that lm-eval and transformers' decoding loop use."""

    config_class = PreTrainedConfig
    main_input_name = "input_ids"

    def __init__(self, computes: LogitsModel) -> None:
        make: Any = PreTrainedConfig
        ends = list(computes.end_tokens)
        super().__init__(
            make(vocab_size=computes.vocabulary, max_position_embeddings=computes.positions, eos_token_id=ends or None)
        )
        # transformers asks the parameters of a model for its device and dtype.
        self.placed = torch.nn.Parameter(torch.zeros(0), requires_grad=False)
        self._computes = computes

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V], or those of the last ``logits_to_keep`` positions.

        past_key_values: the ``ReadIds`` that an earlier call gave, for one text that goes on.
        """
        before = past_key_values.ids if isinstance(past_key_values, ReadIds) else ()
        logits_BTV = self._computes._batch(input_ids, attention_mask, before, logits_to_keep or input_ids.shape[1])
        read = ReadIds((*before, *input_ids[0].tolist())) if use_cache and len(input_ids) == 1 else None
        return CausalLMOutputWithPast(logits=cast(Any, logits_BTV), past_key_values=cast(Any, read))

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        """As in transformers, with complete texts at every step: the engine keeps what it has processed."""
        return cast(Any, super()).generate(*arguments, **settings | {"use_cache": False})


@contextmanager
def plain_decoding(model: Any) -> Iterator[None]:
    """Decode as requested, whatever a checkpoint's generation_config.json adds (sampling, a repetition penalty)."""
    own = model.generation_config
    plain: Any = GenerationConfig  # untyped
    ids = {name: getattr(own, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with replace_attribute(model, "generation_config", plain(**ids)):
        yield


@contextmanager
def replace_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Temporarily replace an attribute of ``owner``."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
