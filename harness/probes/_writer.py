"""Batched greedy generation by one side: prompts in, continuations out.

Imported only while observing: torch and transformers come with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from harness.errors import DataError, HarnessError, ModelError
from harness.probes._compare import Written
from harness.probes._greedy import NonFiniteWatch, plain_decoding
from harness.scoring.packing import Tokens
from harness.scoring.side import NotPackedError, PackedSide, Prompt
from harness.system.foreign import guard

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


class TextGenerator:
    """A loaded model together with its prompt formatting.

    Legend: B prompts, T tokens of the longest, N generated tokens.
    """

    def __init__(self, loaded: LoadedModel, new_tokens: int, bos: bool, chat: bool, rows: int) -> None:
        """rows: the most prompts written at a time. Raises DataError if ``chat`` is set and the tokenizer has no chat
        template."""
        self.name, self._model, self._tokenizer = loaded.name, loaded.language_model, loaded.tokenizer
        self._driven = loaded.language_model.for_transformers()
        self._new_tokens, self._bos, self._chat = new_tokens, bos, chat
        if chat and not self._tokenizer.chat_template:
            raise DataError(
                f"generations: {self.name}: chat: true, but its tokenizer has no chat template; set chat: false or add "
                "the template to the tokenizer's files"
            )
        self._stops = _stops(loaded)
        self._packed = PackedSide(loaded, rows)
        self._plain = ""

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt, BOS or chat template included. Raises DataError for a prompt that does not fit."""
        text, opening = prompt, [self._tokenizer.bos_token_id] if self._bos else []
        if self._chat:
            turns = [{"role": "user", "content": prompt}]
            try:
                text = str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
            except Exception as error:  # A template is a program of the checkpoint, which may fail in any way.
                raise DataError(
                    f"generations: {self.name}: its chat template cannot be rendered: {type(error).__name__}: {error}; "
                    "repair the template, or set chat: false"
                ) from error
            opening = []  # the template writes it
        token_ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [token for token in opening if token is not None] + list(token_ids)
        positions = self._model.positions
        wanted = len(ids) + self._new_tokens
        if not ids or (positions is not None and wanted > positions):
            what = (
                f"{wanted} tokens including the generated ones, {self.name} has {positions} positions"
                if ids
                else "no token"
            )
            raise DataError(
                f"generations: the prompt {prompt[:60]!r} has {what}; give other prompts or fewer new_tokens"
            )
        return ids

    def write_packed(self, prompts: Sequence[Sequence[int]]) -> list[Written]:
        """The same as ``write`` with a cache of what prompts share and no work for texts that have ended.

        Raises NotPackedError where ``write`` could find anything else, from then on at once.
        """
        if self._plain:
            raise NotPackedError(self._plain)
        try:
            return self._write_packed([Prompt("", tuple(ids)) for ids in prompts])
        except NotPackedError as error:
            self._plain = str(error)
            raise

    def _write_packed(self, prompts: Sequence[Prompt]) -> list[Written]:
        stops = frozenset(self._stops)

        def write_plain(numbers: Sequence[int]) -> list[Tokens]:
            return [written.ids for written in self.write([prompts[number].ids for number in numbers])]

        found = self._packed.write(prompts, self._new_tokens, lambda ids: ids[-1] in stops, write_plain)
        if not all(each.finite for each in found):
            raise NotPackedError("some logits are not finite")  # what it writes after them is lost
        return [self._cut_at_end(each.ids, each.finite) for each in found]

    def write(self, prompts: Sequence[Sequence[int]]) -> list[Written]:
        """Greedy continuations of prompts of any length. Raises ModelError if the model cannot generate."""
        width = max(len(prompt) for prompt in prompts)
        padding = self._stops[0] if self._stops else 0
        ids_BT = torch.full((len(prompts), width), padding)
        mask_BT = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids_BT[row, width - len(prompt) :] = torch.tensor(prompt)
            mask_BT[row, width - len(prompt) :] = 1
        watch = NonFiniteWatch()
        written_BN = self._generate(ids_BT, mask_BT, padding, watch)[:, width:]
        broken = torch.zeros(len(prompts)) if watch.rows is None else watch.rows
        return [self._cut_at_end(row, not bad) for row, bad in zip(written_BN.tolist(), broken.tolist(), strict=True)]

    def _generate(self, ids_BT: Tensor, mask_BT: Tensor, padding: int, watch: NonFiniteWatch) -> Tensor:
        make: Any = GenerationConfig
        settings = make(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self._new_tokens,
            eos_token_id=self._stops or None,
            pad_token_id=padding,
            use_cache=True,
        )
        model: Any = self._driven
        device = self._model.device
        try:
            with torch.no_grad(), plain_decoding(model), guard(f"{self.name}: its generation"):
                generated: Tensor = model.generate(
                    input_ids=ids_BT.to(device),
                    attention_mask=mask_BT.to(device),
                    generation_config=settings,
                    logits_processor=LogitsProcessorList([watch]),
                )
        except HarnessError:
            raise
        except Exception as error:
            text = " ".join(str(error).split()) or "no message"
            raise ModelError(f"generations: {self.name} could not generate: {type(error).__name__}: {text}") from error
        return generated.cpu()

    def _cut_at_end(self, ids: list[int], finite: bool) -> Written:
        """Ids up to and including the end-of-text token; what follows it is padding."""
        end = next((index for index, token in enumerate(ids) if token in self._stops), None)
        kept = ids if end is None else ids[: end + 1]
        text = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Written(tuple(kept), str(text), end is not None, finite)


def _stops(loaded: LoadedModel) -> list[int]:
    """Ids that end a text: those that the checkpoint declares and that of the tokenizer."""
    end_ids = [*loaded.language_model.end_tokens, loaded.tokenizer.eos_token_id]
    return sorted({token for token in end_ids if isinstance(token, int)})
