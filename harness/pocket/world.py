"""The pocket world of the reference model: documents and task items, generated from seeds.

Everything here follows from the words in `lexicon`, an integer seed and an index: no file is read, and the text is the
same on every machine and Python version. Training data is separated from evaluation data in two ways:

* every passage (the part of a document before its first question, or all of it) belongs to exactly one of the splits
  train, calibration, heldout and tasks, by a hash of its text;
* one in eight pairs of verb and thing, and one in eight sums, are held out: they occur only in heldout and tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from harness.pocket import drills, prose, stories, tales
from harness.pocket.draws import Draws
from harness.pocket.page import SPLITS, Page, owning_split

Writer = Callable[[Page], None]


@dataclass(frozen=True)
class Document:
    """One document.

    `entropy` is the derivation entropy in nats: -log of the probability of the draws that wrote the text.
    It is an upper bound of -log p(text): different draws can give the same text, and rejected draws are not discounted.
    `answers` are the character ranges of answers in the text, including the leading space.
    """

    id: str
    kind: str
    text: str
    entropy: float
    answers: tuple[tuple[int, int], ...] = ()


_COMMON: dict[str, Writer] = {
    "story": lambda page: stories.story(page, (2, 5), (2, 3), 4, (3, 7)),
    "easy": lambda page: stories.story(page, (1, 3), (1, 2), 0, (6, 6)),
    "hop": lambda page: stories.two_hop_story(page, (2, 4), (1, 3), 2, (3, 6)),
    "tale": tales.tale,
    "crowd": lambda page: stories.story(page, (5, 8), (2, 3), 2, (3, 5)),
    "recall": lambda page: prose.draw_recall(page, 46),
    "sums": drills.sums,
    "requests": drills.requests,
    "filler": prose.filler,
    "copy": prose.copy,
}

# The kinds of document in each stage, with their weights and writers. The opening teaches copying and looking up; the
# late stage has the longest distances; both main and late drill sums. "long", the default and the stage of every split
# but training, is the late stage without that drill.
STAGES: dict[str, tuple[tuple[tuple[str, Writer], float], ...]] = {
    "opening": (
        (("easy", _COMMON["easy"]), 0.36),
        (("copy", _COMMON["copy"]), 0.21),
        (("recall", lambda page: prose.draw_recall(page, 2)), 0.12),
        (("sums", lambda page: drills.sums(page, drills.OPENING_SHAPES)), 0.10),
        (("requests", _COMMON["requests"]), 0.11),
        (("hop", lambda page: stories.two_hop_story(page, (2, 3), (1, 1), 0, (4, 6))), 0.05),
        (("tale", _COMMON["tale"]), 0.04),
        (("filler", _COMMON["filler"]), 0.01),
    ),
    "main": (
        (("story", _COMMON["story"]), 0.21),
        (("crowd", lambda page: stories.story(page, (5, 7), (2, 2), 1, (3, 5))), 0.08),
        (("hop", _COMMON["hop"]), 0.14),
        (("tale", _COMMON["tale"]), 0.10),
        (("recall", lambda page: prose.draw_recall(page, 12)), 0.11),
        (("sums", lambda page: drills.sums(page, drills.TRAINING_SHAPES)), 0.21),
        (("requests", _COMMON["requests"]), 0.07),
        (("filler", _COMMON["filler"]), 0.04),
        (("copy", _COMMON["copy"]), 0.02),
        (("easy", _COMMON["easy"]), 0.02),
    ),
    "late": (
        (("story", _COMMON["story"]), 0.20),
        (("crowd", _COMMON["crowd"]), 0.08),
        (("hop", _COMMON["hop"]), 0.17),
        (("tale", _COMMON["tale"]), 0.11),
        (("recall", _COMMON["recall"]), 0.14),
        (("sums", lambda page: drills.sums(page, drills.TRAINING_SHAPES)), 0.16),
        (("requests", _COMMON["requests"]), 0.07),
        (("filler", _COMMON["filler"]), 0.03),
        (("copy", _COMMON["copy"]), 0.02),
        (("easy", _COMMON["easy"]), 0.02),
    ),
    "long": (
        (("story", _COMMON["story"]), 0.24),
        (("crowd", _COMMON["crowd"]), 0.09),
        (("hop", _COMMON["hop"]), 0.14),
        (("tale", _COMMON["tale"]), 0.10),
        (("recall", _COMMON["recall"]), 0.14),
        (("sums", _COMMON["sums"]), 0.14),
        (("requests", _COMMON["requests"]), 0.07),
        (("filler", _COMMON["filler"]), 0.04),
        (("copy", _COMMON["copy"]), 0.02),
        (("easy", _COMMON["easy"]), 0.02),
    ),
}


@lru_cache(maxsize=4096)
def document(split: str, index: int, seed: int = 0, stage: str = "long") -> Document:
    """The document with this index; it does not depend on the number of documents requested.

    Kept, since a run asks for its documents several times.
    """
    address = f"{split}/{stage}/{seed}/{index}"
    draws = Draws("document", address)
    while True:
        draws.nats = 0.0
        kind, write = draws.choose_weighted(STAGES[stage])
        page = Page(draws, split)
        write(page)
        if owning_split(page.passage) == split:
            return Document(address, kind, page.text, draws.nats, tuple(page.answers))


def documents(split: str, count: int, seed: int = 0, stage: str = "long") -> list[Document]:
    """The first `count` documents of a split (train, calibration, heldout or tasks). Raises ValueError for others."""
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}; got {split!r}")
    if stage not in STAGES:
        raise ValueError(f"stage: expected one of {', '.join(STAGES)}; got {stage!r}")
    return [document(split, index, seed, stage) for index in range(count)]
