"""One side of a comparison in packed rows; its first answers are compared with those of a plain loop (lm-eval's).

Imported only while observing: torch and transformers come with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.errors import ForeignCodeError
from harness.lockstep.decoder import Decoder
from harness.scoring.agreement import explain_likelihoods, is_tie
from harness.scoring.beginnings import CALL_TOKENS
from harness.scoring.caches import UnusableCacheError
from harness.scoring.decoding import Continuation, GreedyDecoder
from harness.scoring.fitness import explain_dependence, find_window
from harness.scoring.likelihoods import Likelihood, PackedLikelihoods
from harness.scoring.packing import Scored, Tokens

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel
    from harness.scoring.decoding import Ended

CHECKED_TOKENS = 1024
"""Length of the sequences of each task that are scored both ways, together; at least one sequence is."""
CHECKED_TEXTS = 4
"""Texts of each task that are compared with those of a plain loop or with whole passes."""


class NotPackedError(Exception):
    """Why a task must be scored as lm-eval does, one sequence per row."""


@dataclass(frozen=True)
class Prompt:
    """A text to continue, with its token ids."""

    text: str
    ids: Tokens


class PackedSide:
    """One side of a comparison that scores the requests of tasks in packed rows."""

    def __init__(self, loaded: LoadedModel, rows: int) -> None:
        """rows: the most texts generated at a time."""
        self._reason = explain_dependence(loaded)
        self._decoder = Decoder(loaded.name, loaded.language_model)
        self._likelihoods = PackedLikelihoods(self._decoder)
        self._loaded, self._rows = loaded, rows

    def score(
        self,
        sequences: Sequence[Scored],
        limit: int,
        dtype: torch.dtype | None,
        plain: Callable[[Sequence[int]], Sequence[tuple[float, bool]]],
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each sequence, and whether its continuation is the greedy one.

        limit: the most tokens that are read; dtype: of the softmax; plain: lm-eval's answers to the requests of some
        numbers. Raises NotPackedError.
        """
        self._check_fit(max(len(sequence.inputs(limit)) for sequence in sequences))
        found: dict[int, Likelihood] = {}
        try:
            for batch in self._likelihoods.score(sequences, limit, dtype):
                checked = [] if found else _choose_checked(list(batch), sequences, limit)
                expected = [Likelihood(*answer) for answer in plain(checked)] if checked else []
                reason = explain_likelihoods([batch[number] for number in checked], expected, self._likelihoods.dtype)
                if reason or not all(-torch.inf < each.total < torch.inf for each in batch.values()):
                    raise NotPackedError(reason or "some log-likelihoods are not finite")
                found |= batch
        except (NotPackedError, ForeignCodeError):
            raise
        except Exception as error:  # Models raise anything; if it was not for the packing, the plain way raises it too.
            raise NotPackedError(f"it could not read packed rows ({type(error).__name__})") from error
        return [(found[number].total, found[number].greedy) for number in range(len(sequences))]

    def write(
        self, prompts: Sequence[Prompt], longest: int, ended: Ended, plain: Callable[[Sequence[int]], list[Tokens]]
    ) -> list[Continuation]:
        """Greedy continuations of up to ``longest`` tokens.

        ended: whether a continuation is complete; plain: lm-eval's continuations of the prompts of some numbers, which
        may go on where they are complete. Raises NotPackedError.
        """
        self._check_fit(max(len(prompt.ids) for prompt in prompts) + longest)
        decoder = GreedyDecoder(self._loaded.name, self._loaded.language_model, self._rows)
        try:
            written = decoder.write([prompt.ids for prompt in prompts], longest, ended)
        except UnusableCacheError as error:
            raise NotPackedError(str(error)) from error
        except ForeignCodeError:
            raise
        except Exception as error:
            raise NotPackedError(f"its cache could not be shared ({type(error).__name__})") from error
        checked = self._choose_compared(prompts, written)
        for number, expected in zip(checked, plain(checked), strict=True):
            if not self._same_text(prompts[number].ids, written[number].ids, expected):
                raise NotPackedError("a text of its shared cache is not the one that it writes alone")
        return written

    def _check_fit(self, longest: int) -> None:
        """Raise NotPackedError for a model that no packing suits, or none of sequences so long."""
        if self._reason:
            raise NotPackedError(self._reason)
        window = find_window(self._loaded.model)
        if window is not None and longest > window:
            raise NotPackedError(f"a layer sees {window} tokens, fewer than the longest sequence has ({longest})")

    def _choose_compared(self, prompts: Sequence[Prompt], written: Sequence[Continuation]) -> list[int]:
        """The texts to be written by the plain loop too: the longest, which saw most of the cache.

        The loop takes as long as the longest of them. Where reading costs less, whole passes read them, and the loop
        writes the shortest, and those in which a pass finds a token that is not the most likely.
        """
        order = sorted(range(len(written)), key=lambda number: (len(written[number].ids), number))
        shortest, longest = order[:CHECKED_TEXTS], order[-CHECKED_TEXTS:]
        steps = len(written[longest[-1]].ids) - len(written[shortest[-1]].ids)
        sequences = [Scored(prompts[number].ids, tuple(written[number].ids)) for number in longest]
        lengths = [len(each.context) + len(each.continuation) for each in sequences]
        if steps * CALL_TOKENS <= sum(lengths):
            return longest
        greedy: set[int] = set()
        # What cannot be read whole is left to the loop, which tells why.
        with suppress(RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError):
            for batch in self._likelihoods.score(sequences, max(lengths)):
                greedy |= {longest[place] for place, found in batch.items() if found.greedy}
        return list(dict.fromkeys([*shortest, *(number for number in longest if number not in greedy)]))

    @torch.no_grad()
    def _same_text(self, prompt: Tokens, ids: Sequence[int], expected: Sequence[int]) -> bool:
        """Whether two continuations are the same as far as ``ids`` go, or part where two tokens are equally likely."""
        place = next((at for at, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), None)
        if place is None:
            return len(ids) <= len(expected)
        read = torch.tensor([[*prompt, *ids[:place]]], device=self._decoder.device)
        return is_tie(self._loaded.language_model.logits(read)[0, -1], ids[place], expected[place])


def _choose_checked(numbers: Sequence[int], sequences: Sequence[Scored], limit: int) -> list[int]:
    """The first sequences of a batch: neighbours in a row, of CHECKED_TOKENS tokens together."""
    chosen: list[int] = []
    tokens = 0
    for number in numbers:
        tokens += len(sequences[number].inputs(limit))
        if chosen and tokens > CHECKED_TOKENS:
            break
        chosen.append(number)
    return chosen
