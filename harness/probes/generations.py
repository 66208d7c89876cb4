"""The probe ``generations``: greedy continuations of the same prompts by both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from harness.data.aligned_windows import readings
from harness.data.documents import read_documents
from harness.data.encoding import follow_bos
from harness.errors import DataError
from harness.probes import Context, Probe
from harness.probes._compare import PARTIAL, Written, common_reach, first_difference, similarity
from harness.records import Bos

if TYPE_CHECKING:
    import pandas as pd

    from harness.data.documents import RawDocument
    from harness.models.loaded import LoadedModel
    from harness.probes._embedding import Embedding
    from harness.probes._writer import TextGenerator

Positive = Annotated[int, Field(gt=0)]
WHOLE = ("document", "reference_tokens", "variant_tokens", "first", "reach", "first_character", "characters")


@dataclass(frozen=True)
class Prompt:
    """A prompt for both sides; document: its index in the suite, −1 if prompts come from a file."""

    document: int
    id: str
    kind: str
    text: str


class Generations(Probe):
    """Lets both sides continue the same prompts greedily, and compares the texts.

    Prompts are the beginnings of the suite's documents, or come from a file; each side encodes them with its own
    tokenizer. Decoding settings of a checkpoint are ignored; a text ends at the end-of-text token of the checkpoint or
    of the tokenizer. Writes one row per prompt, with both texts.
    """

    runs = "alone"
    reads = "texts"
    needs = ("generation",)
    paths: ClassVar[tuple[str, ...]] = ("prompts", "embedding")

    prompts: str | None = Field(
        default=None,
        description="path of a .jsonl file of prompts; default: the beginnings of the suite's documents",
        examples=["./prompts.jsonl"],
    )
    prompt_field: str = Field(default="prompt", description="field of that file that contains the prompt")
    prompt_tokens: Positive = Field(
        default=32, description="prompt length in reference tokens, taken from the beginning of a document"
    )
    new_tokens: Positive = Field(default=64, description="maximum number of generated tokens per prompt")
    max: Positive = Field(default=100, description="maximum number of prompts, the first ones")
    chat: bool = Field(default=False, description="wrap prompts in the tokenizer's chat template, as the user's turn")
    bos: Bos = Field(
        default=True, description="prompts begin with BOS if the tokenizer has one; auto: if the reference's puts it"
    )
    batch_size: Positive = Field(default=16, description="batch size: prompts per batch, on both sides")
    embedding: str | None = Field(
        default=None,
        description="folder of a sentence-embedding model for embedding_similarity; default: none",
        examples=["./embedding-model"],
    )

    @property
    def reads_documents(self) -> bool:
        """Unless prompts come from a file."""
        return self.prompts is None

    def inputs(self) -> str:
        """Hash of the prompts file and of the embedding model."""
        digest = hashlib.sha256()
        folder = Path(self.embedding) if self.embedding else None
        for path in [*([Path(self.prompts)] if self.prompts else []), *(sorted(folder.iterdir()) if folder else [])]:
            if path.is_file():
                digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def observe(self, context: Context) -> None:
        """Commit one unit per batch of prompts. Raises DataError for unusable prompts."""
        prompts = self._read_file() if self.prompts else self._take_beginnings(context.reference, context.texts)
        batches = [prompts[at : at + self.batch_size] for at in range(0, len(prompts), self.batch_size)]
        sinks, progress = context.sinks, context.progress
        if all(sink.done(_unit(number)) for sink in sinks for number in range(len(batches))):
            return
        from harness.probes._writer import TextGenerator

        models = [context.reference, *context.variants]
        bos = follow_bos(self.bos, context.reference.tokenizer)
        writers = [TextGenerator(loaded, self.new_tokens, bos, self.chat, self.batch_size) for loaded in models]
        for prompt in (prompt for batch in batches for prompt in batch):
            for writer in writers:
                writer.ids(prompt.text)  # what does not fit is found before anything is written
        same = [_same_tokens(models[0], variant) for variant in models[1:]]
        embedding = self._embedding()
        for number, batch in enumerate(batches):
            progress.step("generations", number, len(batches))
            waiting = [index for index, sink in enumerate(sinks) if not sink.done(_unit(number))]
            if waiting:
                references: dict[bool, list[Written]] = {}
                for index in waiting:
                    wanted, found = _write_texts(writers[0], writers[index + 1], batch, references)
                    rows = _frame(batch, wanted, found, same[index], embedding)
                    sinks[index].commit(_unit(number), {"generations": rows})
        progress.step("generations", len(batches), len(batches))

    def _read_file(self) -> list[Prompt]:
        """Read the prompts file. Raises DataError for a file that cannot be read, or a prompt without text."""
        found = read_documents(str(self.prompts), self.max, self.prompt_field)
        prompts = [Prompt(-1, document.id, document.kind, document.text) for document in found]
        if empty := [prompt.id for prompt in prompts if not prompt.text.strip()]:
            raise DataError(f"{self.prompts}: the prompt {empty[0]} has no text; remove it or write one")
        return prompts

    def _take_beginnings(self, reference: LoadedModel, documents: Sequence[RawDocument]) -> list[Prompt]:
        """The first tokens of each document in the reference's tokenization, as text; documents without text are
        skipped."""
        spoken = [(index, document) for index, document in enumerate(documents) if document.text.strip()][: self.max]
        if not spoken:
            raise DataError("generations: no document has a text to begin a prompt; give prompts: or other documents")
        read = readings([document.text for _, document in spoken], reference.tokenizer)
        prompts = []
        for (index, document), reading in zip(spoken, read, strict=True):
            place = int(reading.places[reading.counts <= self.prompt_tokens][-1])
            # A tokenizer that does not say where its tokens are can still write them.
            text = document.text[:place] or str(reference.tokenizer.decode(reading.ids[: self.prompt_tokens].tolist()))
            prompts.append(Prompt(index, document.id, document.kind, text.rstrip(PARTIAL)))
        return prompts

    def _embedding(self) -> Embedding | None:
        if self.embedding is None:
            return None
        from harness.probes._embedding import Embedding

        return Embedding(Path(self.embedding))


def _unit(number: int) -> str:
    return f"generations/{number}"


def _same_tokens(reference: LoadedModel, variant: LoadedModel) -> bool:
    """Whether an id means the same token on both sides."""
    return bool(reference.tokenizer.get_vocab() == variant.tokenizer.get_vocab())


def _write_texts(
    reference: TextGenerator, variant: TextGenerator, batch: Sequence[Prompt], references: dict[bool, list[Written]]
) -> tuple[list[Written], list[Written]]:
    """What both sides write, in the same way. references: what the reference wrote already, packed and not."""
    from harness.scoring.side import NotPackedError

    prompts, own = ([side.ids(prompt.text) for prompt in batch] for side in (reference, variant))
    try:
        if True not in references:
            references[True] = reference.write_packed(prompts)
        return references[True], variant.write_packed(own)
    except NotPackedError:
        if False not in references:
            references[False] = reference.write(prompts)
        return references[False], variant.write(own)


def _frame(
    batch: Sequence[Prompt],
    reference: Sequence[Written],
    variant: Sequence[Written],
    same: bool,
    embedding: Embedding | None,
) -> pd.DataFrame:
    """The table ``generations``: one row per prompt."""
    import pandas as pd

    rows = [_row(prompt, one, two, same) for prompt, one, two in zip(batch, reference, variant, strict=True)]
    frame = pd.DataFrame(rows).astype(dict.fromkeys(WHOLE, "int32"))
    texts = [common_reach(one, two) for one, two in zip(reference, variant, strict=True)]
    cosines = embedding.cosines([a for a, _ in texts], [b for _, b in texts]) if embedding else np.nan
    return frame.assign(embedding_similarity=cosines)


def _row(prompt: Prompt, reference: Written, variant: Written, same: bool) -> dict[str, object]:
    """first and reach count tokens, end-of-text included, and are −1 if token ids mean different things."""
    one, two = common_reach(reference, variant)
    first = first_difference(reference.ids, variant.ids) if same else -1
    differ = reference.ids != variant.ids if same else one != two
    return {
        "document": prompt.document,
        "id": prompt.id,
        "kind": prompt.kind,
        "prompt": prompt.text,
        "reference_text": reference.text,
        "variant_text": variant.text,
        "reference_tokens": len(reference.ids),
        "variant_tokens": len(variant.ids),
        "reference_ended": reference.ended,
        "variant_ended": variant.ended,
        "reference_finite": reference.finite,
        "variant_finite": variant.finite,
        "same_tokens": same,
        "diverged": differ,
        "first": first,
        "reach": min(len(reference.ids), len(variant.ids)) if same else -1,
        "first_character": first_difference(one, two),
        "characters": max(len(one), len(two)),
        "similarity": similarity(one, two),
    }
