"""Keeps lm-eval from touching what is not its own: random states, logs and bars, caches of local files.

Imports lm-eval, and torch with it.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.evaluator
import lm_eval.utils
import numpy as np
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.models import huggingface

from harness.data.task_files import resolve_data_paths
from harness.models.language_model import replace_attribute

LOCAL_FORMATS = frozenset({"arrow", "csv", "json", "pandas", "parquet", "text", "xml"})
"""Dataset builders that read local files; their cache is keyed on size and time only."""
_LOGGERS = ("lm_eval", "transformers", "datasets")


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
def reuse_templates() -> Iterator[None]:
    """Compile each template of a task once; lm-eval does so for every document and every field of it."""
    environment = lm_eval.utils.env
    with replace_attribute(environment, "from_string", functools.lru_cache(environment.from_string)):
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
