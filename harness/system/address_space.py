"""The memory that libraries need only to be loaded, held against the limits of the process before any is loaded."""

from __future__ import annotations

import os
import sys

from harness.errors import HarnessError

MIB = 2**20
NUMBERS = 256 * MIB
"""Bytes to load numpy, scipy and pandas with one thread: 225 MB sufficed on Linux. With less, OpenBLAS may end the
process with 1, the exit code of a failed rule, or never return."""
MODELS = 1200 * MIB
"""Bytes to load torch and transformers besides: 1200 MB did not suffice on Linux, 1500 MB did."""
ROOMY = 4096 * MIB
"""Bytes from which OpenBLAS may have a thread for each core, each of which reserves memory of its own."""


class AddressSpaceError(HarnessError):
    """A limit of this process is too small to load the libraries. The message holds nothing but numbers and names."""

    usual_failure = "resources"


def check_address_space(needed: int) -> None:
    """Raise AddressSpaceError for limits below ``needed`` bytes; to be called before numpy is imported.

    Below a limit that is tight but sufficient, OpenBLAS gets one thread unless the user chose a number.
    """
    if sys.platform != "linux":
        return
    import resource

    for kind, what, option in ((resource.RLIMIT_AS, "address space", "-v"), (resource.RLIMIT_DATA, "data", "-d")):
        limit = resource.getrlimit(kind)[0]
        if limit == resource.RLIM_INFINITY:
            continue
        if limit < needed:
            raise AddressSpaceError(
                f"the {what} of this process is limited to {limit // MIB} MiB, expected at least {needed // MIB} MiB "
                f"to load the libraries, and more for models; raise the limit (ulimit {option}) and run it again"
            )
        if limit < ROOMY:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
