"""The tokenizer: byte-level BPE with 1,536 entries, trained on the pocket world.

Every digit is a token, every word of the world is one token with its leading space, and encoding adds <s>.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from harness.pocket import lexicon
from harness.pocket.world import documents

VOCABULARY = 1536
CONTEXT = 512
BOS, EOS = "<s>", "</s>"


def train_tokenizer(count: int = 6000) -> Tokenizer:
    """Train on `count` documents of each of two stages and on the words, so that rare ones are whole too."""
    texts = [document.text for stage in ("opening", "long") for document in documents("train", count, stage=stage)]
    texts += [" " + " ".join(lexicon.words())] * 200
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as `transformers` reads them."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    fast.save_pretrained(folder)
