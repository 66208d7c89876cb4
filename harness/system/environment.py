"""Where and with what a run is made. Nothing here changes between two identical runs on one machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path

from harness import __version__
from harness.records import Environment

PACKAGES = ("torch", "transformers", "tokenizers", "lm-eval", "datasets", "numpy", "pandas", "scipy", "pyarrow")
"""The packages whose version may move a number."""


def prepare_threads() -> None:
    """Let idle OpenMP threads spin only for a moment before they sleep; call before torch is imported.

    By default they spin for milliseconds: quick on an idle machine, but beside another process on the same cores the
    evaluation of a small model was seen to take 20 times as long. Threads that sleep at once lose the gain of a second
    core. What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def describe_environment(libraries: Iterable[str] = ()) -> Environment:
    """The environment of this process; imports torch, whose thread count may move the last bit of a sum.

    libraries: import names of others that make a number (those of backends), of which the versions are wanted, too.
    """
    import torch

    return Environment(
        harness=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        threads=torch.get_num_threads(),
        packages={package: version(package) for package in (*PACKAGES, *_packages(libraries))},
    )


def _packages(libraries: Iterable[str]) -> list[str]:
    """What pip calls the packages that libraries are imported from; without those that are always named."""
    wanted = {library.partition(".")[0] for library in libraries}
    providers = packages_distributions() if wanted else {}
    found = {package for name in wanted for package in providers.get(name, ())}
    return sorted(found - {"torch", *PACKAGES})


def _processor() -> str:
    """The processor's model name, with the accelerator's beside it where torch sees one."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    name = platform.processor()
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    if torch.cuda.is_available():
        name = f"{name}; {torch.cuda.get_device_name()}"
    return name or "unknown"
