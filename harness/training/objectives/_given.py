"""What an objective gathers its texts from: both models, their tokenizers, training texts, and a cache.

training texts ─▶ prompts ─▶ a model writes ─▶ texts of the student's tokens ─▶ Source
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.models.identity import weights_sha256
from harness.training import checkpoints
from harness.training.data import Training
from harness.training.examples import Batch, Example, examples_sha256, make_batch, places_in_order
from harness.training.objectives._reading import Reader
from harness.training.objectives._terms import log_likelihoods
from harness.training.writing import continue_batch, write_texts

FORMAT = 1
"""Of what is written here: a change makes texts in caches those of another training."""
TOGETHER = 16
"""Texts whose likelihoods are computed at the same time."""


@dataclass(frozen=True)
class Source:
    """Texts on which objectives are computed.

    together: examples that stay together, 2 for pairs. before, before_held_out: log-likelihoods of the examples under
    the student before training. write: continues prompts at every step, for texts of the student itself. notes: what a
    reader of the report should know.
    """

    examples: Sequence[Example]
    held_out: Sequence[Example]
    together: int = 1
    before: Tensor | None = None
    before_held_out: Tensor | None = None
    write: Callable[[PreTrainedModel, Batch], Batch] | None = None
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of all its texts and of what is learned of them."""
        return examples_sha256([*self.examples, *self.held_out])

    def draw(self, batch: Batch, seed: int) -> Batch:
        """As many of its texts (or pairs) as a batch of the training texts has, in an order of their own."""
        own = self.held_out if batch.held_out else self.examples
        wanted, units = len(batch.places), len(own) // self.together
        if batch.held_out:
            chosen = [(batch.number + place) % units for place in range(wanted)]
        else:
            chosen = places_in_order(batch.number, wanted, units, seed)
        places = [unit * self.together + number for unit in chosen for number in range(self.together)]
        return make_batch(own, places, batch.ids.device, batch.step, batch.number, batch.held_out)

    def find_before(self, batch: Batch) -> Tensor | None:
        """Log-likelihoods before training of the examples of a batch of this source."""
        known = self.before_held_out if batch.held_out else self.before
        return None if known is None else known[list(batch.places)].to(batch.ids.device)


@dataclass(frozen=True)
class Given:
    """Both models and what texts are made of. name: of the step. tokenizer: the student's. same_tokens: whether the
    teacher's is the same."""

    name: str
    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    training: Training
    same_tokens: bool

    @property
    def seed(self) -> int:
        """Fixes everything that is drawn."""
        return self.training.seed

    @cached_property
    def texts(self) -> Source:
        """The training texts in the student's tokens."""
        texts, held_out = (
            self.translate(Example(ids) for ids in some) for some in (self.training.texts, self.training.held_out)
        )
        return Source(texts, held_out)

    def prompts(self, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        """The first ``tokens`` of every training text and of every held-out text."""
        texts, held_out = ([ids[:tokens] for ids in some] for some in (self.training.texts, self.training.held_out))
        return texts, held_out

    def write(
        self, prompts: Sequence[Tensor], new_tokens: int, temperature: float, seed: int, student: bool = False
    ) -> list[Example]:
        """What the teacher (or the student as it begins) writes after each prompt."""
        name, model = ("the student", self.student) if student else ("the teacher", self.training.teacher)
        return write_texts(f"{self.name}: {name}", model, prompts, new_tokens, temperature, seed)

    def remember(
        self, settings: Mapping[str, Any], read: Iterable[Tensor], make: Callable[[], Sequence[list[Example]]]
    ) -> list[list[Example]]:
        """What ``make`` gives, lists of examples, from the cache if it is there.

        settings, read: everything beside both models, the seed and the environment on which it depends.
        """
        content = {
            "format": FORMAT,
            "settings": dict(settings),
            "models": [self.training.teacher_sha256, weights_sha256(self.student)],
            "read": examples_sha256(Example(ids) for ids in read),
            "seed": self.seed,
            "environment": dict(self.training.environment),
        }
        key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
        path = self.training.cache and self.training.cache / f"{key}{checkpoints.TEXTS}"
        self.training.used.append(key)
        if path and (known := checkpoints.read(path)) is not None:
            return _unpack(*known)
        made = [list(some) for some in make()]
        if path:
            checkpoints.save(path, *_pack(made))
        return made

    @property
    def _teachers(self) -> Any:
        """The teacher's tokenizer."""
        return self.training.tokenizer or self.tokenizer

    @property
    def _bos(self) -> bool:
        return self.training.spec.bos is True

    def encode(self, prompt: str) -> Tensor:
        """A prompt in the teacher's tokens, with BOS where training texts have it."""
        tokenizer = self._teachers
        start = [tokenizer.bos_token_id] if self._bos and tokenizer.bos_token_id is not None else []
        return torch.tensor([*start, *tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]])

    def decode(self, ids: Tensor) -> str:
        """The text of tokens of the teacher, without special ones."""
        return str(self._teachers.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def cut(self, example: Example, is_complete: Callable[[str], bool]) -> Example:
        """The example up to the first learned token with which its learned text is complete."""
        for end in range(example.scored_from + 1, len(example.ids)):
            if is_complete(self.decode(example.ids[example.scored_from : end])):
                return Example(example.ids[:end], example.scored_from)
        return example

    def translate(self, examples: Iterable[Example]) -> list[Example]:
        """Examples of the teacher's tokens in the student's, prompt and learned part apart; an end stays an end."""
        return [each if self.same_tokens else self._translate(each) for each in examples]

    def _translate(self, example: Example) -> Example:
        prompt, learned = example.ids[: example.scored_from], example.ids[example.scored_from :]
        start = [self.tokenizer.bos_token_id] if self._bos else []
        before = [each for each in start if each is not None] + self._encode(prompt)
        if not before:
            before = self._encode(learned)[:1]
        ended = len(learned) and int(learned[-1]) == self._teachers.eos_token_id
        stop = self.tokenizer.eos_token_id
        end = [stop] if ended and stop is not None else []
        return Example(torch.tensor([*before, *self._encode(learned), *end]), max(1, len(before)))

    def _encode(self, ids: Tensor) -> list[int]:
        encoded: Any = self.tokenizer(self.decode(ids), add_special_tokens=False, verbose=False)
        return list(encoded["input_ids"])

    def likelihoods(self, model: PreTrainedModel, examples: Sequence[Example]) -> Tensor:
        """Log-likelihood in nats of the learned tokens of each example."""
        reader, found = Reader(self.name, model), []
        with torch.no_grad():
            for start in range(0, len(examples), TOGETHER):
                batch = make_batch(examples, range(start, min(start + TOGETHER, len(examples))), model.device)
                found.append(log_likelihoods(reader.read(batch), batch).cpu())
        return torch.cat(found)


def continue_prompts(new_tokens: int, temperature: float) -> Callable[[PreTrainedModel, Batch], Batch]:
    """Lets a model continue the prompts of a batch; those of one length go together."""

    def write(model: PreTrainedModel, batch: Batch) -> Batch:
        # A prompt is an example whose last token alone is scored.
        lengths = [int(row.nonzero()[-1]) + 1 for row in batch.scored]
        written: dict[int, Example] = {}
        for length in sorted(set(lengths)):
            rows = [row for row, own in enumerate(lengths) if own == length]
            texts = continue_batch("the student", model, batch.ids[rows, :length], new_tokens, temperature)
            written |= dict(zip(rows, texts, strict=True))
        texts = [written[row] for row in range(len(lengths))]
        return make_batch(texts, range(len(texts)), batch.ids.device, batch.step, batch.number, batch.held_out)

    return write


def _pack(lists: Sequence[Sequence[Example]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    every = [example for examples in lists for example in examples]
    ids = torch.cat([each.ids for each in every]) if every else torch.zeros(0, dtype=torch.int64)
    sizes = torch.tensor([[len(each.ids), each.scored_from] for each in every], dtype=torch.int64)
    return {"ids": ids, "sizes": sizes.reshape(-1, 2)}, {"counts": [len(examples) for examples in lists]}


def _unpack(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> list[list[Example]]:
    lengths, starts = tensors["sizes"].T.tolist()
    every = [Example(ids, start) for ids, start in zip(tensors["ids"].split(lengths), starts, strict=True)]
    found = []
    for count in content["counts"]:
        found.append(every[:count])
        every = every[count:]
    return found
