"""Runs lm-eval's own scorer on a model that is already loaded, and checks what lm-eval would do silently.

Imported only while observing, because it imports lm-eval, transformers and torch. Prevented or recorded here: re-tying
of weights that were compressed separately, a BOS that is never added, truncated prompts, generations from NaN logits,
decoding settings of one checkpoint, global seeds, stale data.
"""

from __future__ import annotations

import copy
import functools
import logging
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import lm_eval
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.evaluator
import numpy as np
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.models import huggingface
from transformers import LogitsProcessorList

from harness.data.task_files import resolve_data_paths
from harness.errors import DataError
from harness.probes._greedy import NonFiniteWatch, plain_decoding, replace_attribute
from harness.system.foreign import guard

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

LOCAL_FORMATS = frozenset({"arrow", "csv", "json", "pandas", "parquet", "text", "xml"})
"""Dataset builders that read local files; their cache is keyed on size and time only."""
_LOGGERS = ("lm_eval", "transformers", "datasets")


class Scorer(huggingface.HFLM):  # type: ignore[misc]
    """HFLM on a loaded model; ``cut`` and ``non_finite`` collect prompts of the current task."""

    def __init__(self, loaded: LoadedModel, batch_size: int, bos: bool) -> None:
        """bos: whether prompts begin with BOS if the tokenizer has one; raises DataError if they do not."""
        self.cut: set[str] = set()
        self.non_finite: set[str] = set()
        self.longest = 0
        self._batch: list[str] = []
        self._rolling = False
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

    def forget_prompts(self) -> None:
        """Forget the prompts of the previous task."""
        self.cut, self.non_finite, self.longest = set(), set(), 0

    def share_context_of(self, reference: Scorer) -> None:
        """Truncate long prompts at the reference's limit, so that both sides read the same."""
        self.own_max_length = int(self.max_length)
        self._max_length = int(reference.max_length)

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
        """As in HFLM, but without a second BOS for rolling tasks, where HFLM adds one as context."""
        if self._rolling:
            add_special_tokens = False
        ids: list[int] = super().tok_encode(string, add_special_tokens, left_truncate_len, **extra)
        return ids

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """As in HFLM; BOS is context only and is not scored as text."""
        self._rolling = True
        try:
            likelihoods: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self._rolling = False
        return likelihoods

    def _loglikelihood_tokens(self, requests: Any, **settings: Any) -> list[tuple[float, bool]]:
        for texts, context, continuation in requests:
            length = len(context) + len(continuation) - 1
            self.longest = max(self.longest, min(length, self.max_length))
            if length > self.max_length and texts is not None:
                self.cut.add(texts[0])
        likelihoods: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **settings)
        return likelihoods

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        **rest: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As in HFLM; also records the prompts of the batch and which of them are truncated."""
        self._batch = list(strings)
        if left_truncate_len:
            self.cut.update(s for s in self._batch if len(self.tok_encode(s)) > left_truncate_len)
        ids, mask = super().tok_batch_encode(list(strings), padding_side, left_truncate_len, **rest)
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
        if watch.rows is not None:
            rows = watch.rows.tolist()
            self.non_finite.update(s for s, bad in zip(self._batch, rows, strict=True) if bad)
        return generated


def evaluate(scorer: Scorer, task: Any, manager: Any, limit: int | None, fewshot: int | None) -> dict[str, Any]:
    """The result of lm-eval's ``simple_evaluate`` for one task object on one side, samples included.

    Seeds are the same for each call; the caller's random states are restored afterwards.
    """
    scorer.forget_prompts()
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


@contextmanager
def isolate_random_states() -> Iterator[None]:
    """Seed Python, numpy and torch as lm-eval does, and restore their global states afterwards."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.set_rng_state(cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def silence() -> Iterator[None]:
    """Disable progress bars, library warnings, calls of git, and lm-eval's survey of the machine."""
    silent = functools.partial(huggingface.tqdm, disable=True)
    bars = datasets.is_progress_bar_enabled()
    with ExitStack() as stack:
        for module in (lm_eval.api.task, lm_eval.api.model, huggingface):
            stack.enter_context(
                replace_attribute(module, "tqdm", lambda *args, **kw: silent(*args, **kw | {"disable": True}))
            )
        stack.enter_context(replace_attribute(lm_eval.evaluator, "get_git_commit_hash", lambda: None))
        stack.enter_context(replace_attribute(lm_eval.evaluator, "add_env_info", lambda storage: None))
        for logger in map(logging.getLogger, _LOGGERS):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        if bars:
            stack.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        yield


@contextmanager
def reload_local_data(cache: Path, folder: Path | None) -> Iterator[None]:
    """Read local data files fresh into ``cache``; hub data sets keep the user's cache.

    folder: where the task file is; relative data files that exist there are resolved against it.
    """
    load = datasets.load_dataset

    def load_dataset(path: str, *args: Any, **settings: Any) -> Any:
        if path in LOCAL_FORMATS or Path(path).exists():
            settings["cache_dir"] = str(cache)
            for key in ("data_files", "data_dir"):
                if folder is not None and settings.get(key) is not None:
                    settings[key] = resolve_data_paths(settings[key], folder)
        return load(path, *args, **settings)

    with replace_attribute(datasets, "load_dataset", load_dataset):
        yield
