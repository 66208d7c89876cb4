"""Runs lm-eval's own scorer on a model that is already loaded, and checks what lm-eval would do silently.

Imported only while observing, because it imports lm-eval, transformers and torch. Prevented or recorded here: re-tying
of weights that were compressed separately, a BOS that is never added, truncated prompts, generations from NaN logits,
decoding settings of one checkpoint, global seeds, stale data.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import lm_eval
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.evaluator
import torch
from lm_eval.models import huggingface
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from transformers import LogitsProcessorList

from harness.errors import DataError
from harness.probes._greedy import NonFiniteWatch, plain_decoding, replace_attribute
from harness.scoring.encodings import Encodings
from harness.scoring.guards import isolate_random_states, silence
from harness.scoring.packing import Scored, Tokens
from harness.scoring.side import NotPackedError, PackedSide, Prompt
from harness.scoring.stopping import StopText
from harness.system.foreign import guard

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

Result = TypeVar("Result")


class Scorer(huggingface.HFLM):  # type: ignore[misc]
    """HFLM on a loaded model, which scores in packed rows (``PackedSide``) where that changes no answer.

    ``cut`` and ``non_finite`` collect prompts of the current task; ``plain`` says why it is scored as lm-eval does it,
    one sequence per row; empty: it is not.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int, bos: bool) -> None:
        """bos: whether prompts begin with BOS if the tokenizer has one; raises DataError if they do not."""
        self.cut: set[str] = set()
        self.non_finite: set[str] = set()
        self.longest = 0
        self._batch: list[str] = []
        self._written: dict[str, Tokens] = {}
        self._rolling = self._gathering = False
        self.plain = ""
        self._packed = PackedSide(loaded, batch_size)
        model = loaded.language_model.for_transformers()
        with replace_attribute(model, "tie_weights", lambda *_, **__: None):
            # HFLM ties weights again, which would put the embedding back in place of a compressed lm_head.
            super().__init__(
                pretrained=model,
                backend="causal",
                tokenizer=copy.deepcopy(loaded.tokenizer),  # HFLM may add a padding token to it
                batch_size=batch_size,
                add_bos_token=None if bos else False,
            )
        self.name = loaded.name
        self._own = self._encodings = Encodings(self.tokenizer)
        self.begins_with_bos = self._check_bos(bos)

    def _check_bos(self, bos: bool) -> bool:
        token = self.tokenizer.bos_token_id
        begins = token is not None and self.tok_encode("A probe of what comes first.")[:1] == [token]
        if bos and token is not None and not begins:
            raise DataError(
                f"{self.name}: the tokenizer has the BOS token {self.tokenizer.bos_token!r} but does not put "
                "it before prompts; repair its post-processor or, if the model was trained without BOS, set "
                "bos: false"
            )
        if begins and not bos:
            raise DataError(f"{self.name}: bos: false has no effect, the tokenizer puts BOS before every prompt")
        return begins

    def begin_task(self, plain: str) -> None:
        """Forget the prompts of the previous task. plain: why the next one must not be scored in packed rows."""
        self.cut, self.non_finite, self.longest, self.plain = set(), set(), 0, plain
        self._own.forget()

    def share_context_of(self, reference: Scorer) -> None:
        """Truncate long prompts at the reference's limit, so that both sides read the same, and reuse its encodings."""
        self.own_max_length = int(self.max_length)
        self._max_length = int(reference.max_length)
        if self._own.is_same_as(reference._own):
            self._encodings = reference._own

    def get_model_info(self) -> dict[str, Any]:
        """Empty: lm-eval would query the hub for it."""
        return {}

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **extra: Any,
    ) -> list[int]:
        """As in HFLM, each text once, but without a second BOS for rolling tasks, where HFLM adds one as context."""
        if self._rolling:
            add_special_tokens = False
        encode = functools.partial(super().tok_encode, string, add_special_tokens, **extra)
        ids = self._encodings.get((string, add_special_tokens), encode)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As in HFLM, with all texts encoded in one call."""
        pairs = [request.args[:2] for request in requests]
        texts = [text for context, more in pairs if context for text in (context.rstrip(), f"{context}{more}") if text]
        bos = self.tokenizer.decode(self.prefix_token_id)
        settings = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        self._encodings.fill((text for text in texts if not has_bos_prefix(text, bos)), settings)
        likelihoods: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return likelihoods

    @property
    def batch_size(self) -> Any:
        """As in HFLM; the windows of rolling tasks come all at once where they are packed."""
        return sys.maxsize if self._gathering else super().batch_size

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """As in HFLM; BOS is context only and is not scored as text."""
        ask = functools.partial(super().loglikelihood_rolling, requests, disable_tqdm=disable_tqdm)

        def ask_for_all_windows() -> list[float]:
            with replace_attribute(self, "_gathering", True):
                likelihoods: list[float] = ask()
            return likelihoods

        with replace_attribute(self, "_rolling", True):
            return self._try_packed(ask_for_all_windows, ask)

    def _loglikelihood_tokens(self, requests: Any, **settings: Any) -> list[tuple[float, bool]]:
        for texts, context, continuation in requests:
            length = len(context) + len(continuation) - 1
            self.longest = max(self.longest, min(length, self.max_length))
            if length > self.max_length and texts is not None:
                self.cut.add(texts[0])
        ask = functools.partial(super()._loglikelihood_tokens, **settings)
        if self._gathering:
            with replace_attribute(self, "_gathering", False):
                return self._score_packed(requests, ask)
        return self._try_packed(lambda: self._score_packed(requests, ask), lambda: ask(requests))

    def _score_packed(self, requests: Any, ask: Callable[[Any], Any]) -> list[tuple[float, bool]]:
        sequences = [Scored(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        return self._packed.score(
            sequences, int(self.max_length), self.softmax_dtype, lambda numbers: ask([requests[n] for n in numbers])
        )

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As in HFLM."""
        ask = functools.partial(super().generate_until, disable_tqdm=disable_tqdm)
        return self._try_packed(lambda: self._write_packed(requests, ask), lambda: ask(requests))

    def _write_packed(self, requests: Sequence[Any], ask: Callable[[Any], Any]) -> list[str]:
        """Raises NotPackedError."""
        texts: dict[int, str] = {}
        arguments = [request.args for request in requests]
        waiting = list(range(len(requests)))
        while waiting:
            settings = arguments[waiting[0]][1]
            numbers = [number for number in waiting if arguments[number][1] == settings]
            waiting = [number for number in waiting if number not in set(numbers)]
            longest, stops = self._read_settings(settings)
            prompts = self._encode_prompts([arguments[number][0] for number in numbers], longest)

            def write_plain(chosen: Sequence[int], numbers: Sequence[int] = numbers) -> list[Tokens]:
                self._written.clear()
                ask([requests[numbers[place]] for place in chosen])
                return [self._written[arguments[numbers[place]][0]] for place in chosen]

            ended = StopText(self.tok_decode, stops, self._end_tokens())
            for number, prompt, written in zip(
                numbers, prompts, self._packed.write(prompts, longest, ended, write_plain), strict=True
            ):
                if not written.finite:
                    self.non_finite.add(prompt.text)
                texts[number] = postprocess_generated_text(self.tok_decode(written.ids), stops, None)
        return [texts[number] for number in range(len(requests))]

    def _read_settings(self, settings: dict[str, Any]) -> tuple[int, list[str]]:
        """The most tokens to write, and the strings at which a text ends. Raises NotPackedError."""
        asked = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        stops = handle_stop_sequences(asked.pop("until"), self.tok_decode(self.eot_token_id, skip_special_tokens=False))
        longest = int(asked.pop("max_gen_toks"))
        greedy = not asked.pop("do_sample", False) and not asked.pop("temperature", 0.0)
        if not greedy or asked or self.think_end_token is not None or not 0 < longest < self.max_length:
            raise NotPackedError("the task asks for more than greedy decoding up to a stop string")
        return longest, stops

    def _encode_prompts(self, texts: Sequence[str], longest: int) -> list[Prompt]:
        """Prompts as lm-eval's batches have them. Raises NotPackedError."""
        bos = self.tokenizer.bos_token
        if bos and len({text.startswith(bos) for text in texts}) > 1:
            raise NotPackedError("some prompts begin with the text of BOS")  # a batch is encoded like its first prompt
        room = int(self.max_length) - longest
        ids_BT, mask_BT = self.tok_batch_encode(texts, left_truncate_len=room, truncation=self.truncation)
        self.longest = max(self.longest, ids_BT.shape[1] + longest)
        rows = zip(texts, ids_BT.tolist(), mask_BT.sum(dim=1).tolist(), strict=True)
        return [Prompt(text, tuple(ids[len(ids) - length :])) for text, ids, length in rows]

    def _end_tokens(self) -> list[int]:
        declared = getattr(self.model.generation_config, "eos_token_id", None)
        several = declared if isinstance(declared, list | tuple) else [declared]
        return [token for token in (*several, self.eot_token_id) if token is not None]

    def _try_packed(self, packed: Callable[[], Result], plain: Callable[[], Result]) -> Result:
        """The first, unless the task cannot be packed; then ``plain`` says why."""
        if not self.plain:
            try:
                return packed()
            except NotPackedError as error:
                self.plain = str(error)
                self.non_finite.clear()
        return plain()

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        **rest: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As in HFLM; also records the prompts of the batch and which of them are truncated."""
        self._batch = list(strings)
        ids, mask = super().tok_batch_encode(list(strings), padding_side, None, **rest)
        if left_truncate_len:
            lengths = mask.sum(dim=1).tolist()
            self.cut.update(s for s, length in zip(self._batch, lengths, strict=True) if length > left_truncate_len)
            ids, mask = ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]
        return ids, mask

    def _model_call(self, inps: torch.Tensor, **settings: Any) -> torch.Tensor:
        """As in HFLM."""
        with guard(f"{self.name}: its forward pass"):
            logits: torch.Tensor = super()._model_call(inps, **settings)
        return logits

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any) -> Any:
        watch = NonFiniteWatch()
        self.longest = max(self.longest, max_length)
        with plain_decoding(self.model), guard(f"{self.name}: its generation"):
            generated = super()._model_generate(
                context, max_length, stop, logits_processor=LogitsProcessorList([watch]), **settings
            )
        rows = generated[:, context.shape[1] :].tolist()
        self._written |= {text: tuple(ids) for text, ids in zip(self._batch, rows, strict=True)}
        if watch.rows is not None:
            rows = watch.rows.tolist()
            self.non_finite.update(s for s, bad in zip(self._batch, rows, strict=True) if bad)
        return generated


def evaluate(
    scorer: Scorer, task: Any, manager: Any, limit: int | None, fewshot: int | None, plain: str
) -> dict[str, Any]:
    """The result of lm-eval's ``simple_evaluate`` for one task object on one side, samples included.

    plain: why nothing may be scored in packed rows; empty: it may.

    Seeds are the same for each call; the caller's random states are restored afterwards.
    """
    scorer.begin_task(plain)
    # Aggregates are not used, and some overflow on a broken model instead of saying so.
    task.aggregation = functools.partial(defaultdict, lambda: len)
    with isolate_random_states(), silence():
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=scorer,
            tasks=[task],
            task_manager=manager,
            num_fewshot=fewshot,
            limit=limit,
            log_samples=True,
            bootstrap_iters=0,
        )
    return results
