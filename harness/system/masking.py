"""Masks what belongs to a person and not to a result: tokens of the hub, and home folders in paths."""

from __future__ import annotations

import os
import pwd
import re
from contextlib import suppress
from functools import cache

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_USUAL_HOMES = r"(?:/(?:var|usr|export))?/(?:home|Users)/[^/\s:]+|[A-Za-z]:\\Users\\[^\\\s:]+|/root(?![\w.-])"


def mask(text: str) -> str:
    """``text`` with ``hf_***`` for hub tokens and ``~`` for home folders: those of this user, and the usual places."""
    if "hf_" in text:
        text = _TOKEN.sub("hf_***", text)
    if "/" in text or "\\" in text:  # as every home folder has; most texts are no paths
        text = _homes(*_own_homes()).sub("~", text)
    return text


def _own_homes() -> tuple[str, ...]:
    """The home folders of this user: by the environment, which a CI runner may set, and by the system."""
    found = [os.environ.get("HOME", "")]
    with suppress(KeyError):  # a container may run as a user whom its system does not know
        found.append(pwd.getpwuid(os.getuid()).pw_dir)
    return tuple(dict.fromkeys(home for place in found if (home := place.rstrip("/")).startswith("/")))


@cache
def _homes(*own: str) -> re.Pattern[str]:
    both = {path for home in own for path in (home, os.path.realpath(home))} - {"/"}
    known = "".join(f"{re.escape(path)}(?![\\w.-])|" for path in sorted(both, key=lambda path: (-len(path), path)))
    return re.compile(rf"(?<![\w.])(?:{known}{_USUAL_HOMES})")
